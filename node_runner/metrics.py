"""What a node measures of itself: for its heartbeat, and for Prometheus."""

import threading
import time

from prometheus_client import Counter, Gauge, Histogram

forward_batch_size = Histogram(
    "far_node_batch_size",
    "Generations packed into one forward",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
forward_seconds = Histogram(
    "far_node_forward_seconds",
    "One exchange's computing",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
positions_total = Counter("far_node_positions_total", "Positions computed")
guessed_total = Counter("far_node_guessed_tokens_total", "Tokens guessed ahead (edge)")
accepted_total = Counter("far_node_accepted_tokens_total", "Guessed tokens that were right (edge)")
generations_active = Gauge("far_node_generations", "Generations that hold KV room")
kv_used_bytes = Gauge("far_node_kv_used_bytes", "KV room reserved")
kv_budget_bytes = Gauge("far_node_kv_budget_bytes", "KV room in all")

announcements = Counter(
    "far_node_dht_announcements_total", "Announcements in the DHT: stored, failed", ["outcome"]
)


class Meter:
    """Latency of a step and positions per second, smoothed over about a hundred steps.

    Written by the runner's thread, read by the heartbeat's.
    """

    SMOOTHING = 0.02

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency = 0.0
        self._positions = 0
        self._since = time.monotonic()

    def observe(self, seconds: float, positions: int) -> None:
        """One step that computed ``positions`` in ``seconds``."""
        with self._lock:
            weight = self.SMOOTHING if self._latency else 1.0
            self._latency += weight * (seconds - self._latency)
            self._positions += positions

    def restart(self) -> None:
        """Forget how long steps took: another span is served now."""
        with self._lock:
            self._latency = 0.0

    def read(self) -> tuple[float, float]:
        """Latency in milliseconds, and positions per second since the last call."""
        with self._lock:
            now = time.monotonic()
            rate = self._positions / max(now - self._since, 1e-9)
            self._positions, self._since = 0, now
            return self._latency * 1000, rate
