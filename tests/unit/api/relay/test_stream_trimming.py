"""When keys are checked."""

import pytest

from api.relay.stream_trimming import StreamTrimmer


def test_a_key_is_checked_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmer = StreamTrimmer(check_bytes=100)
    assert trimmer.due("inbox", 60)
    assert [trimmer.due("inbox", 60) for _ in range(4)] == [False, True, False, True]
    assert trimmer.due("connection")
    assert not trimmer.due("connection")
    trimmer.reset()
    assert trimmer.due("connection")
    monkeypatch.setattr("api.relay.stream_trimming.CHECK_SECONDS", 0.0)
    assert trimmer.due("connection")


def test_all_that_have_grown_are_checked_when_they_have_grown_enough_together() -> None:
    trimmer = StreamTrimmer(check_bytes=100, check_all_bytes=150)
    for key in ("a", "b", "c", "still"):
        assert trimmer.due(key)
    assert not any(trimmer.due(key, 49) for key in ("a", "b", "c"))
    assert trimmer.all_due() == []
    assert not trimmer.due("a", 10)
    assert trimmer.all_due() == ["a", "b", "c"]
    assert trimmer.all_due() == []
    assert not trimmer.due("a", 90)
