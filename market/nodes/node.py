"""A node as routes see it, and its incarnation."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from market.geo.distance import Coordinates

LocationSource = Literal["geoip", "declared", "unknown"]
"""How it is known where a node is: by the address that it registered from, by its own word, or not
at all."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the routes see it. Latency in milliseconds a step, throughput in tokens/s, and the
    positions that its whole KV cache has room for (0: it does not say).

    ``hop_ms``: milliseconds that a message takes to it and back, beside its step (0: not measured).
    ``latitude``, ``longitude``: degrees north and east; none where they are not known.
    ``registration``: how often it has registered; see the module. ``memory_bytes``: room for
    weights and KV (0: it does not say). ``load_bytes_per_second``: weights, as it loaded its span
    (0: not measured). ``min_price``: FAR a token of the model, for less than which it does not
    serve. ``max_sessions``: generations that it takes at once (0: no limit but its memory).
    ``placeable``: whether the platform chooses its span.
    """

    node_id: str
    wallet_address: str
    model_id: str
    start_layer: int
    end_layer: int
    edge: bool
    trusted: bool
    gpu_model: str
    vram_gb: int
    location: str
    public_addr: str
    is_healthy: bool
    latency_ms: float
    throughput_tokens_per_sec: float
    current_requests: int
    kv_positions: int
    last_seen: float
    hop_ms: float = 0.0
    latitude: float | None = None
    longitude: float | None = None
    located: LocationSource = "unknown"
    registration: int = 0
    quantization: str = "none"
    memory_bytes: int = 0
    load_bytes_per_second: float = 0.0
    gpu_utilization_percent: float = 0.0
    vram_used_gb: float = 0.0
    min_price: Decimal | None = None
    max_sessions: int = 0
    placeable: bool = False

    @property
    def coordinates(self) -> Coordinates | None:
        """Where it is, if that is known."""
        if self.latitude is None or self.longitude is None:
            return None
        return Coordinates(self.latitude, self.longitude)

    def could_hold(self, positions: int) -> bool:
        """Whether a generation of so many positions fits, once nothing else is there."""
        return not self.kv_positions or self.kv_positions >= positions

    @property
    def layers_served(self) -> list[int]:
        return list(range(self.start_layer, self.end_layer))


@dataclass(frozen=True, slots=True)
class NodeIncarnation:
    """A node, and which of its registrations speaks: only the last one counts."""

    node_id: str
    number: int


pass


MIN_STEP_MS = 0.01
"""A step costs so much at least, also one that has not been measured yet, so that queues count."""
