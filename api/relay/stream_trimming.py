"""What pushes write to has to end one day, and may not grow for ever. A look each minute, and each
so many bytes, is enough for that; so most pushes cost no command more."""

import time

LOOK_SECONDS = 60.0
MAX_KNOWN = 10_000

KEEP_INBOX = """
redis.call('EXPIRE', KEYS[1], ARGV[1])
local bytes = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0)
if not bytes or bytes <= tonumber(ARGV[2]) then return 0 end
redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)
return 1
"""
"""1: the inbox was too long, and was emptied. Keys: inbox. Arguments: seconds to live, bytes at
most."""


class StreamTrimmer:
    """Remembers, for its process, when each key was looked after."""

    def __init__(self, look_bytes: int) -> None:
        self._look_bytes = look_bytes
        self._known: dict[str, tuple[float, int]] = {}
        """When a key was looked after, and the bytes that came since."""

    def due(self, key: str, size: int = 0) -> bool:
        """Whether to look after a key with the push that adds so many bytes to it."""
        now = time.monotonic()
        looked_at, added = self._known.get(key, (0.0, 0))
        added += size
        if looked_at and now - looked_at < LOOK_SECONDS and added < self._look_bytes:
            self._known[key] = (looked_at, added)
            return False
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        self._known[key] = (now, 0)
        return True

    def forget(self) -> None:
        """Redis did not answer: what it has done, and what it still has, nobody knows."""
        self._known.clear()
