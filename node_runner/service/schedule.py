"""When to serve: daily windows of local time, such as ``22:00-08:00``."""

import datetime as dt
import re
from dataclasses import dataclass

_WINDOW = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")


class InvalidSchedule(ValueError):
    """Not windows of a day; the message shows how they are written."""


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start`` (included) to ``end`` (not), past midnight where the end is the smaller."""

    start: dt.time
    end: dt.time

    def includes(self, time: dt.time) -> bool:
        if self.start < self.end:
            return self.start <= time < self.end
        return time >= self.start or time < self.end


@dataclass(frozen=True, slots=True)
class Schedule:
    """Windows of every day. Times are local: what the owner's clock shows, also when clocks
    change."""

    windows: tuple[Window, ...]

    def includes(self, when: dt.datetime) -> bool:
        """Whether to serve at that time."""
        return any(window.includes(when.time()) for window in self.windows)

    def next_change(self, when: dt.datetime) -> dt.datetime:
        """When a window next begins or ends after ``when``; a day later if none ever does."""
        times = {time for window in self.windows for time in (window.start, window.end)}
        candidates = sorted(
            dt.datetime.combine(when.date() + dt.timedelta(days=days), time, when.tzinfo)
            for days in (0, 1)
            for time in times
        )
        now = self.includes(when)
        for candidate in candidates:
            if candidate > when and self.includes(candidate) != now:
                return candidate
        return when + dt.timedelta(days=1)


def parse(text: str) -> Schedule:
    """Windows, separated by commas: ``22:00-08:00`` or ``12:00-13:30,20:00-24:00``.

    Raises:
        InvalidSchedule: not of this form.
    """
    windows = []
    for part in text.split(","):
        match = _WINDOW.fullmatch(part.strip())
        if match is None:
            raise InvalidSchedule(
                f"A schedule is like 22:00-08:00 or 12:00-13:30,20:00-24:00; got {text!r}."
            )
        hours = [int(number) for number in match.groups()]
        window = Window(_time(hours[0], hours[1], text), _time(hours[2], hours[3], text))
        if window.start == window.end and window.start != dt.time(0):
            raise InvalidSchedule(f"{part.strip()} is no time at all. For always, leave it out.")
        windows.append(window)
    return Schedule(tuple(windows))


def _time(hour: int, minute: int, text: str) -> dt.time:
    if (hour, minute) == (24, 0):
        return dt.time(0)
    try:
        return dt.time(hour, minute)
    except ValueError:
        raise InvalidSchedule(f"There is no time {hour}:{minute:02} ({text!r}).") from None
