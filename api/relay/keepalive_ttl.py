"""For how long a node counts as alive after a pulse came over the internet."""

from mesh.relay import KEEPALIVE_INTERVAL

LEAST_TTL = 1.0
"""Seconds: four pulses. One lost packet is sent again within half a second on most links."""

MOST_TTL = 3.0
"""Seconds: who is silent for longer is dead to its generations, whatever its link is like."""

POLLED_TTL = 2.0
"""Seconds, over HTTP, where each pulse is a request of its own."""

SMOOTHING = 0.125
DEVIATIONS = 4
"""As TCP reckons how long to wait for an acknowledgement (RFC 6298)."""


class PulseClock:
    """Learns how evenly a connection's pulses come. A node that stops is noticed within about a
    second if they come evenly, and not given up for each delay if they do not."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._gap = KEEPALIVE_INTERVAL
        self._deviation = 0.0

    def heard(self, now: float) -> float:
        """A pulse came at ``now`` (monotonic seconds). Returns for how many seconds it holds."""
        if self._last is not None:
            gap = now - self._last
            self._deviation += 2 * SMOOTHING * (abs(gap - self._gap) - self._deviation)
            self._gap += SMOOTHING * (gap - self._gap)
        self._last = now
        return min(max(self._gap + DEVIATIONS * self._deviation, LEAST_TTL), MOST_TTL)
