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
