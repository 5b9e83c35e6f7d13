"""For how long a node counts as alive after a keep-alive came over the internet."""

from mesh.keepalive import (
    MAX_RELAY_KEEPALIVE_TTL,
    MIN_RELAY_KEEPALIVE_TTL,
    RELAY_KEEPALIVE_INTERVAL,
)

SMOOTHING = 0.125
DEVIATIONS = 4
"""As TCP reckons how long to wait for an acknowledgement (RFC 6298)."""


class AdaptiveTtl:
    """Learns how evenly a connection's keep-alives come. A node that stops is noticed within about
    a second if they come evenly, and not given up for each delay if they do not."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._gap = RELAY_KEEPALIVE_INTERVAL
        self._deviation = 0.0

    def observe(self, now: float) -> float:
        """A keep-alive came at ``now`` (monotonic seconds). Returns for how many seconds it
        holds."""
        if self._last is not None:
            gap = now - self._last
            self._deviation += 2 * SMOOTHING * (abs(gap - self._gap) - self._deviation)
            self._gap += SMOOTHING * (gap - self._gap)
        self._last = now
        ttl = self._gap + DEVIATIONS * self._deviation
        return min(max(ttl, MIN_RELAY_KEEPALIVE_TTL), MAX_RELAY_KEEPALIVE_TTL)
