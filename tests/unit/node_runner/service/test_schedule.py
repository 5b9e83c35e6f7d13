"""When a schedule is open."""

import datetime as dt

import pytest

from node_runner.service.schedule import InvalidSchedule, parse


def at(time: str) -> dt.datetime:
    return dt.datetime.fromisoformat(f"2026-03-01T{time}")


@pytest.mark.parametrize(
    ("text", "time", "serves"),
    [
        ("08:00-22:00", "07:59", False),
        ("08:00-22:00", "08:00", True),
        ("08:00-22:00", "22:00", False),
        ("22:00-08:00", "23:59", True),
        ("22:00-08:00", "00:00", True),
        ("22:00-08:00", "08:00", False),
        ("20:00-24:00", "23:59", True),
        ("20:00-24:00", "00:00", False),
        ("00:00-24:00", "12:00", True),
        ("12:00-13:30, 20:00-02:00", "13:00", True),
        ("12:00-13:30, 20:00-02:00", "14:00", False),
        ("12:00-13:30, 20:00-02:00", "01:59", True),
    ],
)
def test_windows_of_a_day(text: str, time: str, serves: bool) -> None:
    assert parse(text).includes(at(time)) is serves


@pytest.mark.parametrize(
    ("text", "now", "then"),
    [
        ("22:00-08:00", "2026-03-01T12:00", "2026-03-01T22:00"),
        ("22:00-08:00", "2026-03-01T23:00", "2026-03-02T08:00"),
        ("08:00-12:00,12:00-14:00", "2026-03-01T09:00", "2026-03-01T14:00"),
        ("00:00-24:00", "2026-03-01T09:00", "2026-03-02T09:00"),
    ],
)
def test_when_it_changes(text: str, now: str, then: str) -> None:
    found = parse(text).next_change(dt.datetime.fromisoformat(now))
    assert found == dt.datetime.fromisoformat(then)


@pytest.mark.parametrize("text", ["", "night", "22-8", "25:00-08:00", "08:00-08:60", "08:00-08:00"])
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(InvalidSchedule):
        parse(text)
