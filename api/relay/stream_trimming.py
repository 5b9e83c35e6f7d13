"""Keys that pushes write to must expire one day, and may not grow for ever. A check each minute,
and each time that some more bytes have come, is enough for that; so most pushes cost no command
more."""

import time

CHECK_SECONDS = 60.0
MAX_KEYS = 10_000

CAP_INBOX = """
redis.call('EXPIRE', KEYS[1], ARGV[1])
local bytes = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0)
if not bytes or bytes <= tonumber(ARGV[2]) then return 0 end
redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)
return 1
"""
"""1: the inbox was too long, and was emptied. Keys: inbox. Arguments: seconds to live, bytes at
most."""


class StreamTrimmer:
    """Remembers, for its process, when each key was checked.

    Args:
        check_bytes: Bytes after whose coming a key is checked before its minute is over.
    """

    def __init__(self, check_bytes: int) -> None:
        self._check_bytes = check_bytes
        self._checks: dict[str, tuple[float, int]] = {}
        """When a key was checked, and the bytes that came since."""

    def due(self, key: str, size: int = 0) -> bool:
        """Whether to check a key with the push that adds ``size`` bytes to it."""
        now = time.monotonic()
        checked_at, added = self._checks.get(key, (0.0, 0))
        added += size
        if checked_at and now - checked_at < CHECK_SECONDS and added < self._check_bytes:
            self._checks[key] = (checked_at, added)
            return False
        if len(self._checks) > MAX_KEYS:
            self._checks.clear()
        self._checks[key] = (now, 0)
        return True

    def reset(self) -> None:
        """Have each key checked again: Redis did not answer, and what it has done is not known."""
        self._checks.clear()
