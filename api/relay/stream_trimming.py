"""Keys that pushes write to must expire one day, and may not grow for ever. A check each minute,
and each time that some more bytes have come, is enough for that; so most pushes cost no command
more."""

import sys
import time

CHECK_SECONDS = 60.0
MAX_KEYS = 10_000


class StreamTrimmer:
    """Remembers, for its process, when each key was checked.

    Args:
        check_bytes: Bytes after whose coming a key is checked before its minute is over.
        check_all_bytes: Bytes that come to keys which are not checked, until all of them are.
    """

    def __init__(self, check_bytes: int = sys.maxsize, check_all_bytes: int = sys.maxsize) -> None:
        self._check_bytes = check_bytes
        self._check_all_bytes = check_all_bytes
        self._unchecked_bytes = 0
        self._checks: dict[str, tuple[float, int]] = {}
        """When a key was checked, and the bytes that came since."""

    def due(self, key: str, size: int = 0) -> bool:
        """Whether to check a key with the push that adds ``size`` bytes to it."""
        now = time.monotonic()
        checked_at, added = self._checks.get(key, (0.0, 0))
        added += size
        if checked_at and now - checked_at < CHECK_SECONDS and added < self._check_bytes:
            self._checks[key] = (checked_at, added)
            self._unchecked_bytes += size
            return False
        if len(self._checks) > MAX_KEYS:
            self._checks.clear()
        self._checks[key] = (now, 0)
        return True

    def all_due(self) -> list[str]:
        """All keys that have grown since they were checked, if they have grown by too much
        together; else none."""
        if self._unchecked_bytes < self._check_all_bytes:
            return []
        self._unchecked_bytes = 0
        grown = [key for key, (_, added) in self._checks.items() if added]
        self._checks |= dict.fromkeys(grown, (time.monotonic(), 0))
        return grown

    def reset(self) -> None:
        """Have each key checked again: Redis did not answer, and what it has done is not known."""
        self._checks.clear()
