"""Registration, heartbeat, node view."""

import datetime as dt
from decimal import Decimal
from typing import Annotated

from pydantic import (
    BaseModel,
    Field,
    field_validator,
)

from api.schemas.base import Address, Label, ModelId, Name, RequestBody, WalletAddress
from market.providers.node_status import NodeState

MAX_LAYERS = 1024
"""No model has as many; bounds what a registration may list."""


class RegistrationBody(RequestBody):
    """What a node says of itself. Span and edge are signed, with the nonce, by the wallet. A
    machine that the wallet has let in sends its token instead."""

    node_id: Name | None = None
    """What it would like to be called: honoured unless another wallet's node is called so."""
    wallet_address: WalletAddress
    model_id: ModelId
    gpu_model: Label
    vram_gb: int = Field(ge=0, le=1024)
    public_addr: Address
    location: Label
    latitude: float | None = Field(None, ge=-90, le=90)
    longitude: float | None = Field(None, ge=-180, le=180)
    """Degrees north and east. They count, as `location` does, where its address tells nothing."""
    start_layer: int = Field(0, ge=0)
    end_layer: int | None = Field(None, ge=1)
    """Not included; the model's last layer is served if it is not given."""
    layers_served: list[int] | None = Field(None, max_length=MAX_LAYERS)
    """The span as a list of consecutive layers; an empty one says nothing."""
    edge: bool = False
    placeable: bool = False
    """Let the platform choose the span now, and move the node later; span and edge do not count."""
    device_id: Name | None = None
    """What the node's machine calls itself, always the same. Whoever registers with the same
    wallet, machine and GPU is the same node."""
    gpu_index: int = Field(0, ge=0, lt=1024)
    quantization: str = Field("none", max_length=10, pattern=r"^[a-z0-9]*$")
    memory_bytes: int = Field(0, ge=0, le=2**50)
    """Room for weights and KV; 0 where it does not say."""
    max_sessions: int = Field(0, ge=0, le=1_000_000)
    """Generations that it takes at once; 0 for no limit but its memory."""
    min_price: Decimal | None = Field(None, ge=0, max_digits=38, decimal_places=18)
    """FAR a token of the model, for less than which it does not serve."""
    dht_key: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Ed25519 key, in hex, with which the node signs what it announces in the DHT."""
    nonce: str | None = Field(None, max_length=64)
    signature: str | None = Field(None, max_length=1024)

    @field_validator("layers_served")
    @classmethod
    def _consecutive(cls, layers: list[int] | None) -> list[int] | None:
        if layers and layers != list(range(layers[0], layers[0] + len(layers))):
            raise ValueError("the layers are not consecutive")
        return layers


Layer = Annotated[int, Field(ge=0, le=100_000)]


Layers = tuple[Layer, Layer]
"""A span: start and end (not included)."""


class HeartbeatBody(RequestBody):
    """A heartbeat. Latency in milliseconds a step; the rest as named.

    The upper limits are beyond any node; without them one node's figure could break the sums that
    routes are chosen by.
    """

    node_id: str = Field(max_length=255)
    model_id: ModelId | None = None
    is_healthy: bool
    latency_ms: float = Field(ge=0, le=3_600_000)
    throughput_tokens_per_sec: float = Field(ge=0, le=1e9)
    current_requests: int = Field(0, ge=0, le=1_000_000)
    kv_positions: int = Field(0, ge=0, le=1_000_000_000)
    """What its whole KV cache has room for, in positions; 0 where it does not say."""
    hop_ms: float = Field(0, ge=0, le=3_600_000)
    """Milliseconds that a message takes to the platform and back; 0 where it is not measured."""
    memory_bytes: int | None = Field(None, ge=0, le=2**50)
    """As in the registration, if that has changed."""
    load_bytes_per_second: float = Field(0, ge=0, le=1e15)
    """Weights, as it loaded its span; 0 where it is not measured."""
    gpu_utilization_percent: float = Field(0, ge=0, le=100)
    vram_used_gb: float = Field(0, ge=0, le=1_000_000)
    serves: list[Layers] = Field([], max_length=4)
    """Spans that it serves now: two while it moves."""
    cannot_serve: Layers | None = None
    """The span that it was told to load, and could not."""
    last_seen: dt.datetime | None = None
    """The specification has it. What counts is when the platform hears the node."""


class NodeView(BaseModel):
    """A node as its provider sees it."""

    node_id: str
    wallet_address: str
    model_id: str
    state: NodeState
    layers_served: list[int]
    edge: bool
    placeable: bool
    """Whether the platform chooses its span."""
    moving_to: Layers | None
    """The span that it is to load, the end not included."""
    last_heartbeat: dt.datetime | None
    current_requests: int
    latency_ms: float
    """Of a step; 0 while nothing was served."""
    hop_ms: float
    throughput_tokens_per_sec: float
    total_tokens_served: int
    total_earned_far: float
    total_earned_far_exact: str
    uptime_percent: float
    skipped: dict[str, int]
    """How often it was not on a route, by reason, in this hour and the one before; of the choices
    that were looked at."""
