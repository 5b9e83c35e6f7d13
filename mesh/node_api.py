"""What a node and the platform say to each other over HTTP: fields and paths, once.

The fields have the names that they have in JSON. A test holds the gateway's bodies to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

NONCE_PATH = "/api/auth/nonce"
REGISTRATION_PATH = "/api/nodes/register-distributed"
HEARTBEAT_PATH = "/api/nodes/heartbeat"

MAX_LABEL = 100
"""Characters of a GPU's model and of a location."""

MAX_MACHINE_NAME = 64
"""Characters of what a provider calls a machine that logs in."""

Span = tuple[int, int]
"""Consecutive layers of a model: the first, and the one behind the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRegistration:
    """What a node says of itself when it registers.

    ``start_layer`` and ``end_layer`` (not included, the model's last if none) are the span to
    serve, and ``edge`` says whether the edge comes with it; neither counts where ``placeable`` lets
    the platform choose. The platform knows a node again by wallet, ``device_id`` and
    ``gpu_index``. ``memory_bytes``: for weights and KV cache, 0 if not known. ``max_sessions``:
    generations at once, 0 for no limit. ``min_price``: FAR a token, as decimal text. ``dht_key``:
    the Ed25519 public key, in hex, by which the node signs what it announces in the DHT.
    """

    wallet_address: str
    model_id: str
    start_layer: int = 0
    end_layer: int | None = None
    edge: bool = False
    placeable: bool = False
    gpu_model: str
    vram_gb: int
    public_addr: str
    location: str
    latitude: float | None = None
    longitude: float | None = None
    device_id: str | None = None
    gpu_index: int = 0
    quantization: str = "none"
    memory_bytes: int = 0
    max_sessions: int = 0
    min_price: str | None = None
    dht_key: str | None = None

    @property
    def signed_span(self) -> tuple[int, int | None] | tuple[None, None]:
        """Start and end as the wallet signs them: none where the platform chooses."""
        return (None, None) if self.placeable else (self.start_layer, self.end_layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtAccess:
    """What a registered node needs to announce itself in the DHT.

    ``credential``: in hex, the operator's word that the node's key speaks for it.
    ``registration``: which of the node's registrations that is for. ``operator_key``: the Ed25519
    public key, in hex, that signed it. ``peers``: multiaddresses to join by.
    """

    credential: str
    registration: int
    operator_key: str
    peers: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationReply:
    """What the platform answers to a registration.

    ``layers_served``: the span as a list of consecutive layers. ``node_token``: the bearer token of
    this node until it registers again. ``dht``: only for a node that sent a key, and where there is
    a DHT.
    """

    node_id: str
    node_token: str = field(repr=False)
    heartbeat_interval_sec: float
    layers_served: Sequence[int]
    edge: bool
    dht: DhtAccess | None = None

    @property
    def span(self) -> Span:
        """Start and end (not included)."""
        return self.layers_served[0], self.layers_served[-1] + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """One heartbeat's figures, all of them measured by the node.

    ``latency_ms``: a step. ``throughput_tokens_per_sec``: positions. ``current_requests``:
    generations that hold KV. ``kv_positions``: capacity of the whole KV cache. ``hop_ms``: a
    message to the platform and back, 0 before the first. ``memory_bytes``: as in the registration,
    if that has changed. ``load_bytes_per_second``: weights, as the span was loaded. ``serves``:
    spans; ``cannot_serve``: the span that the node was told to load and could not. ``is_loading``:
    the node loads its first span, and serves nothing yet. ``fetched_bytes``: of weights, since the
    process began. ``batch_invariant``: whether a generation's tokens are the same
    whoever runs beside.
    """

    is_healthy: bool = True
    latency_ms: float = 0.0
    throughput_tokens_per_sec: float = 0.0
    current_requests: int = 0
    kv_positions: int = 0
    hop_ms: float = 0.0
    batch_invariant: bool = False
    memory_bytes: int | None = None
    load_bytes_per_second: float = 0.0
    gpu_utilization_percent: float = 0.0
    vram_used_gb: float = 0.0
    serves: Sequence[Span] = ()
    cannot_serve: Span | None = None
    is_loading: bool = False
    fetched_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """What the platform answers to a heartbeat: the span that routes are to use, the end not
    included, or with ``should_rebalance`` the span to load. Without a span, nothing changes."""

    should_rebalance: bool
    start_layer: int | None = None
    end_layer: int | None = None

    @property
    def span(self) -> Span | None:
        """Start and end (not included)."""
        if self.start_layer is None or self.end_layer is None:
            return None
        return self.start_layer, self.end_layer
