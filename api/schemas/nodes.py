"""Registration, heartbeat, node view."""

import datetime as dt
from dataclasses import fields
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, Field, Strict

from api.schemas.base import (
    Address,
    ChosenId,
    Label,
    ModelId,
    Price,
    RequestBody,
    Timestamp,
    WalletAddress,
    amounts_far,
    whole,
)
from market.errors import InvalidRequest
from market.membership.registration import checked_span
from market.providers.node_status import NodeState, NodeStatus
from mesh.node_api import (
    DhtAccess,
    Heartbeat,
    HeartbeatReply,
    NodeRegistration,
    RegistrationReply,
)
from mesh.wire.limits import MAX_LAYERS


class RegistrationBody(RequestBody):
    """What a node says of itself. Span and edge are signed, with nonce and expiry, by the wallet. A
    machine that the wallet has let in sends its token instead."""

    node_id: ChosenId | None = None
    """What it would like to be called: honoured unless another wallet's node is called so."""
    wallet_address: WalletAddress
    model_id: ModelId
    gpu_model: Label
    vram_gb: int = Field(ge=0, le=1024)
    public_addr: Address
    location: Label
    latitude: float | None = Field(None, ge=-90, le=90)
    longitude: float | None = Field(None, ge=-180, le=180)
    """Degrees north and east. They count, as `location` does, where its address has no known
    location."""
    start_layer: int = Field(0, ge=0)
    end_layer: int | None = Field(None, ge=1)
    """Not included; the model's last layer is served if it is not given."""
    layers_served: list[int] | None = Field(None, max_length=MAX_LAYERS)
    """The span as a list of consecutive layers; an empty one says nothing."""
    edge: bool = False
    placeable: bool = False
    """Let the platform choose the span now, and move the node later; span and edge do not count."""
    device_id: ChosenId | None = None
    """What the node's machine calls itself, always the same. Whoever registers with the same
    wallet, machine and GPU is the same node."""
    gpu_index: int = Field(0, ge=0, lt=1024)
    quantization: str = Field("none", max_length=10, pattern=r"^[a-z0-9]*$")
    memory_bytes: int = Field(0, ge=0, le=2**50)
    """Room for weights and KV; 0 where it does not say."""
    max_sessions: int = Field(0, ge=0, le=1_000_000)
    """Generations that it takes at once; 0 for no limit but its memory."""
    min_price: Price | None = None
    """FAR a token of the model, for less than which it does not serve."""
    dht_key: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Ed25519 key, in hex, with which the node signs what it announces in the DHT."""
    nonce: str | None = Field(None, max_length=64)
    expires_at: str | None = Field(None, max_length=20)
    """When the signature expires, as it was signed: in UTC, such as 2035-01-31T12:00:00Z."""
    signature: str | None = Field(None, max_length=1024)

    def registration(self, layers: int) -> NodeRegistration:
        """What the node says of itself, with the span that it means, whichever way it says it.

        Args:
            layers: Of the model.

        Raises:
            InvalidRequest: the span is not within the model, has gaps, or is said in two ways that
                differ.
        """
        start, end = self.start_layer, self.end_layer
        if not self.placeable:
            start, end = self._span(layers)
        return NodeRegistration(
            wallet_address=self.wallet_address,
            model_id=self.model_id,
            start_layer=start,
            end_layer=end,
            edge=self.edge,
            placeable=self.placeable,
            gpu_model=self.gpu_model,
            vram_gb=self.vram_gb,
            public_addr=self.public_addr,
            location=self.location,
            latitude=self.latitude,
            longitude=self.longitude,
            device_id=self.device_id,
            gpu_index=self.gpu_index,
            quantization=self.quantization,
            memory_bytes=self.memory_bytes,
            max_sessions=self.max_sessions,
            min_price=self.min_price,
            dht_key=self.dht_key,
        )

    def _span(self, layers: int) -> tuple[int, int]:
        if not self.layers_served:
            return checked_span(self.start_layer, self.end_layer, layers)
        listed = self.layers_served[0], self.layers_served[0] + len(self.layers_served)
        if self.layers_served != list(range(*listed)):
            raise InvalidRequest(
                "layers_served: the layers are not consecutive.", code="layers_served_malformed"
            )
        end = layers if self.end_layer is None else self.end_layer
        given = {"start_layer": self.start_layer, "end_layer": end}
        for (name, value), layer in zip(given.items(), listed, strict=True):
            if name in self.model_fields_set and value != layer:
                raise InvalidRequest(
                    f"{name} is {value}, and layers_served are those from {listed[0]} to "
                    f"{listed[1]}. One of them is enough.",
                    code="layers_served_mismatch",
                )
        return checked_span(*listed, layers, field="layers_served")


Layer = Annotated[int, Field(ge=0, le=100_000), BeforeValidator(whole)]


Span = Annotated[tuple[Layer, Layer], Strict(False)]
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
    batch_invariant: bool = False
    """Whether a generation's tokens are the same whoever runs beside."""
    memory_bytes: int | None = Field(None, ge=0, le=2**50)
    """As in the registration, if that has changed."""
    load_bytes_per_second: float = Field(0, ge=0, le=1e15)
    """Weights, as it loaded its span; 0 where it is not measured."""
    gpu_utilization_percent: float = Field(0, ge=0, le=100)
    vram_used_gb: float = Field(0, ge=0, le=1_000_000)
    serves: list[Span] = Field([], max_length=4)
    """Spans that it serves now: two while it moves."""
    cannot_serve: Span | None = None
    """The span that it was to load, and could not."""
    is_loading: bool = False
    """It loads its first span, and serves nothing yet: then `is_healthy` does not count."""
    fetched_bytes: int = Field(0, ge=0, le=2**60)
    """Bytes of weights that its process has fetched since it began. While they grow, it counts as
    loading."""
    last_seen: Timestamp | None = None
    """The specification has it. What counts is when the heartbeat arrives."""

    def heartbeat(self) -> Heartbeat:
        """The figures, without what the platform knows better."""
        names = [field.name for field in fields(Heartbeat)]
        return Heartbeat(**{name: getattr(self, name) for name in names})


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
    moving_to: Span | None
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

    @classmethod
    def of(cls, node: NodeStatus) -> Self:
        return cls(
            node_id=node.node_id,
            wallet_address=node.wallet,
            model_id=node.model_id,
            state=node.state,
            layers_served=list(range(*node.span)),
            edge=node.edge,
            placeable=node.placeable,
            moving_to=node.moving_to,
            last_heartbeat=node.last_heartbeat,
            current_requests=node.current_requests,
            latency_ms=node.latency_ms,
            hop_ms=node.hop_ms,
            throughput_tokens_per_sec=node.throughput_tokens_per_sec,
            total_tokens_served=node.tokens_served,
            **amounts_far(total_earned=node.earned),
            uptime_percent=node.uptime_percent,
            skipped=node.skipped,
        )


class RegistrationAnswer(BaseModel):
    node_id: str
    status: str
    discovery_url: str
    heartbeat_interval_sec: float
    node_token: str
    """Bearer token of this node, for heartbeats; worth nothing for anything else, and nothing at
    all once the node registers again."""
    layers_served: list[int]
    edge: bool
    """Whether it serves the edge, too."""
    dht: DhtAccess | None
    """Only for the node that sent a `dht_key`, and where there is a DHT."""

    @classmethod
    def of(cls, reply: RegistrationReply, discovery_url: str) -> Self:
        return cls(
            node_id=reply.node_id,
            status="registered",
            discovery_url=discovery_url,
            heartbeat_interval_sec=reply.heartbeat_interval_sec,
            node_token=reply.node_token,
            layers_served=list(reply.layers_served),
            edge=reply.edge,
            dht=reply.dht,
        )


class HeartbeatAnswer(BaseModel):
    status: str
    should_rebalance: bool
    """Load the span that follows, and serve on meanwhile."""
    start_layer: int | None = None
    end_layer: int | None = None
    """The span to serve, the end not included; with layer 0 comes the edge."""

    @classmethod
    def of(cls, reply: HeartbeatReply) -> Self:
        return cls(
            status="ok",
            should_rebalance=reply.should_rebalance,
            start_layer=reply.start_layer,
            end_layer=reply.end_layer,
        )
