"""Registration, heartbeat and its answer over HTTP: fields and paths, once."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One heartbeat's figures, all of them measured here.

    ``latency_ms``: a step. ``throughput_tokens_per_sec``: positions. ``current_requests``:
    generations that hold KV room. ``kv_positions``: what the whole KV cache has room for.
    ``hop_ms``: a message to the platform and back, 0 before the first. ``load_bytes_per_second``:
    weights, as the span was loaded. ``serves``: spans; ``cannot_serve``: the one that the node was
    told to load and could not.
    """

    is_healthy: bool = True
    latency_ms: float = 0.0
    throughput_tokens_per_sec: float = 0.0
    current_requests: int = 0
    kv_positions: int = 0
    hop_ms: float = 0.0
    load_bytes_per_second: float = 0.0
    gpu_utilization_percent: float = 0.0
    vram_used_gb: float = 0.0
    serves: Sequence[tuple[int, int]] = ()
    cannot_serve: tuple[int, int] | None = None
