"""The specification's data models (§8), as the API takes and gives them.

Where they differ from its text: amounts are exact (`Decimal` inside, a number for reading and an
exact string beside it in JSON), `vram_gb` may be 0 (CPU nodes), `public_addr` may be a host name
or IPv6, and a session never carries its prompt.
"""

import datetime as dt
import re
from decimal import Decimal
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

WalletAddress = Annotated[str, StringConstraints(pattern=r"^0x[a-fA-F0-9]{40}$", to_lower=True)]
"""An EVM address; kept in lower case, so that equal wallets compare equal."""

ModelId = Annotated[str, StringConstraints(min_length=1, max_length=255)]

Label = Annotated[str, StringConstraints(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line of text for people, without control characters (Postgres, for one, has no NUL)."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$")]
"""What a node or a machine may call itself."""

MachineName = Annotated[
    str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
]
"""What a provider calls a machine. It stands in a text that his wallet shows him: so it is one
line, in letters that EIP-4361 allows."""

HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?")


def _address(value: str) -> str:
    """``host:port``, the host an IPv4 address, an IPv6 address in brackets, or a name."""
    host, _, port = value.rpartition(":")
    if not (_is_ipv6(host) if host.startswith("[") else HOST.fullmatch(host)):
        raise ValueError("the host is no name or address")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16):
        raise ValueError("the port is not within 1 to 65535")
    return value


def _is_ipv6(host: str) -> bool:
    try:
        address = IPv6Address(host[1:-1])
    except ValueError:
        return False
    return host.endswith("]") and address.scope_id is None


Address = Annotated[str, StringConstraints(max_length=255), AfterValidator(_address)]
"""Where a node can be reached. Nothing of ours connects there: providers open no port."""


class SessionStatus(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"


class Tier(StrEnum):
    STANDARD = "standard"
    PREMIUM = "premium"
    ENTERPRISE = "enterprise"


MAX_FIELDS = 100
"""Far beyond any request. Each unknown field is an error of its own, and a body has room for a
hundred thousand."""


class RequestBody(BaseModel):
    """What strangers send: only fields that we know, and no number that is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "There are too many fields")
        return data


MAX_LAYERS = 1024
"""No model has as many; bounds what a registration may list."""


class NodeRegistration(RequestBody):
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


class NodeHealth(RequestBody):
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


class NodeUse(BaseModel):
    """One node's part in a generation."""

    node_id: str
    layers: list[int]


class NodeContribution(NodeUse):
    """As :class:`NodeUse`, with what it was worth."""

    wallet_address: str
    tokens_contributed: int
    payment_far: float
    payment_far_exact: str


class InferenceSession(BaseModel):
    """A generation as its user sees it: the job."""

    request_id: str
    status: SessionStatus
    model_id: str
    tier: Tier
    started_at: dt.datetime
    completed_at: dt.datetime | None
    text: str | None
    """What has been generated so far; none once the tokens have been forgotten."""
    tokens_generated: int
    prompt_tokens: int
    cost_far: float
    cost_far_exact: str
    platform_fee_far_exact: str | None
    price_per_token_far_exact: str
    hold_far_exact: str
    latency_ms: int | None
    time_to_first_token_ms: int | None
    finish_reason: str | None
    error: str | None
    nodes_used: list[NodeContribution]


class ReceiptStatus(StrEnum):
    FREE = "free"
    """Nothing was charged."""
    CAPTURED = "captured"
    """The user has paid; the providers wait for the release delay."""
    IN_BATCH = "in_batch"
    SETTLED = "settled"
    """The contract has credited the providers, finally."""


class UsageLine(BaseModel):
    """One line of a batch, as the contract's ``verifyUsage`` takes it, and its proof."""

    request_id: str
    """32 bytes as hex: the generation as the chain knows it."""
    user: str
    provider: str
    """The fee's recipient for the line of the platform's fee."""
    tokens: int
    amount: str
    """Base units of FAR."""
    proof: list[str]
    """32 bytes each, as hex, from the line's sibling up."""


class ReceiptBatch(BaseModel):
    """The on-chain transaction that paid a generation, with many others."""

    batch_id: str
    contract: str | None
    transaction_hash: str | None
    """None until it is mined."""
    block_number: int | None
    usage_root: str | None
    """What the contract keeps of the batch's lines; none on a contract that kept nothing."""
    lines: list[UsageLine]


class Receipt(BaseModel):
    """What a generation cost and who got it. A provider sees his own part, and no cost."""

    request_id: str
    status: ReceiptStatus
    model_id: str
    user_wallet: str
    completed_at: dt.datetime
    prompt_tokens: int
    tokens_generated: int
    cost_far: float | None
    cost_far_exact: str | None
    platform_fee_far_exact: str | None
    served: list[NodeContribution]
    batch: ReceiptBatch | None


class Withdrawal(BaseModel):
    """What a user has asked the contract to pay out, and has not got."""

    amount_far: float
    amount_far_exact: str
    ready_at: dt.datetime | None
    """When the contract's delay is over; none if the request was not seen on the chain."""


class CapLowering(BaseModel):
    """A lower cap that the contract carries out after its delay, and that binds here at once."""

    maximum_far: float
    maximum_far_exact: str
    ready_at: dt.datetime


class Spending(BaseModel):
    """The cap that a user signed for the contract, and how much of it is gone. It does not expire:
    a signature's deadline only says until when it can be handed in."""

    signed_far: float
    signed_far_exact: str
    """All that may ever be debited."""
    spent_far: float
    spent_far_exact: str
    """What ended generations have cost, ever."""
    left_far: float
    left_far_exact: str
    """What may be held beyond what is spent and held."""
    lowering: CapLowering | None


class Balance(BaseModel):
    """A user's money. A generation can be asked for if its hold is within ``available`` and within
    what the cap leaves."""

    wallet_address: str
    available_far: float
    available_far_exact: str
    held_far: float
    held_far_exact: str
    """What running generations may cost at most."""
    incoming_far: float
    incoming_far_exact: str
    """Deposits that are on the chain and not confirmed yet."""
    shortfall_far: float
    shortfall_far_exact: str
    """What the contract let out, or took back, after it was spent. The next deposit fills it."""
    withdrawal: Withdrawal | None
    cap: Spending


class EarningsOfDay(BaseModel):
    date: dt.date
    amount_far: float


class Earnings(BaseModel):
    """A provider's earnings (§7.2)."""

    wallet_address: str
    total_earned_far: float
    total_earned_far_exact: str
    total_tokens_served: int
    active_nodes: int
    avg_uptime_percent: float
    pending_payout_far: float
    pending_payout_far_exact: str
    earnings_history: list[EarningsOfDay]


class ProviderStats(BaseModel):
    """A provider at a glance (§8.3): what his dashboard shows."""

    wallet_address: WalletAddress
    total_tokens_served: int = Field(ge=0)
    total_earned_far: float = Field(ge=0)
    active_nodes: int = Field(ge=0)
    uptime_percent: float = Field(ge=0, le=100)
    avg_latency_ms: float = Field(ge=0)
    reliability_score: float | None = Field(ge=0, le=1)
    """None: nothing measures it yet."""
    total_requests_served: int = Field(ge=0)
    failed_requests: int = Field(ge=0)
    """That failed after his nodes had been given a part, whoever was to blame."""


class EarningsPoint(BaseModel):
    """A day of a provider's earnings (§4.2), in FAR."""

    date: dt.date
    amount: float
    amount_exact: str


class NodeState(StrEnum):
    LOADING = "loading"
    """Registered, and not heard yet."""
    SERVING = "serving"
    COOLING_DOWN = "cooling_down"
    """It failed a generation a moment ago, and gets no new one for a while."""
    UNHEALTHY = "unhealthy"
    """Heard, but off the routes: it says so."""
    SILENT = "silent"
    """Not heard for longer than the platform waits, or it has left."""


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


def shown(amount: Decimal) -> float:
    """An amount for people and charts. Never computed with: the exact string stands beside it."""
    return float(amount)
