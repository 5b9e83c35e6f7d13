"""Measures a step's latency, and positions a second."""

import threading
import time


class StepMeter:
    """Latency of a step and positions per second, smoothed over about a hundred steps.

    Written by the serving loop's thread, read by the heartbeats'.
    """

    SMOOTHING = 0.02
    """Weight of the newest step in the average."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency = 0.0
        self._positions = 0
        self._since = time.monotonic()

    def observe(self, seconds: float, positions: int) -> None:
        """Count one step, which computed ``positions`` in ``seconds``."""
        with self._lock:
            weight = self.SMOOTHING if self._latency else 1.0
            self._latency += weight * (seconds - self._latency)
            self._positions += positions

    def reset(self) -> None:
        """Begin the average of the latency anew: another span is served now."""
        with self._lock:
            self._latency = 0.0

    def read(self) -> tuple[float, float]:
        """Latency in milliseconds, and positions per second since the last call."""
        with self._lock:
            now = time.monotonic()
            rate = self._positions / max(now - self._since, 1e-9)
            self._positions, self._since = 0, now
            return self._latency * 1000, rate
