"""A node as routes see it, and its incarnation."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from market.geo.distance import Coordinates

LocationSource = Literal["geoip", "declared", "unknown"]
"""How it is known where a node is: by the address that it registered from, as its owner declared,
or not at all."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as routes see it.

    ``latency_ms``: milliseconds a step. ``kv_positions``: positions of its whole KV cache (0: it
    does not say). ``last_seen``: Unix time of its last heartbeat. ``hop_ms``: milliseconds that a
    message takes to the node and back, beside its step (0: not measured). ``latitude``,
    ``longitude``: degrees north and east; none where they are not known. ``registration``: how
    often the node has registered; only the last registration counts
    (:mod:`market.nodes.live_registry`). ``memory_bytes``: memory for weights and KV cache (0: it
    does not say). ``load_bytes_per_second``: how fast it loaded the weights of its span (0: not
    measured). ``min_price``: FAR a token of the model, for less than which it does not serve.
    ``max_sessions``: generations that it takes at once (0: no limit but its memory).
    ``placeable``: whether the platform chooses its span. ``by_machine``: whether a machine's token
    registered it, and not its wallet's signature. ``batch_invariant``: whether it says that a
    generation's tokens are the same whoever runs beside.
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
    by_machine: bool = False
    batch_invariant: bool = False

    @property
    def coordinates(self) -> Coordinates | None:
        """Where the node is; none if that is not known."""
        if self.latitude is None or self.longitude is None:
            return None
        return Coordinates(self.latitude, self.longitude)

    def could_hold(self, positions: int) -> bool:
        """Whether an empty KV cache of the node holds a generation of ``positions``."""
        return not self.kv_positions or self.kv_positions >= positions

    @property
    def layers_served(self) -> list[int]:
        return list(range(self.start_layer, self.end_layer))


@dataclass(frozen=True, slots=True)
class NodeIncarnation:
    """A node, and by its ``number`` one of its registrations: only the last one may speak for the
    node."""

    node_id: str
    number: int


MIN_STEP_MS = 0.01
"""Milliseconds that a step counts for at least, also one that was not measured yet, so that the
queue of a node always costs something."""
