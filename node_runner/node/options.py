"""What a node is started with."""

from dataclasses import dataclass, field
from pathlib import Path

from mesh.node_api import Span


class CannotServe(Exception):
    """The node does not start, or has to end; the message says what to change."""


class TemporaryFailure(CannotServe):
    """Nothing has to be changed: starting the node again may be all there is to do."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node is started with: `far-node start --help` says what each means."""

    model: str
    wallet: str
    discovery: str | None
    dht_peers: tuple[str, ...]
    operator_key: str | None
    announce: bool
    credential: bytes | str = field(repr=False)
    """The wallet's private key, or the token of a machine that it let in."""
    redis: str | None
    path: str | None
    span: Span | None
    edge: bool
    device: str
    dtype: str
    batch_invariant: bool
    quantization: str
    memory_gb: float | None
    kv_gb: float
    threads: int
    wire: str
    speculate: bool
    draft: str | None
    paged: bool
    public_addr: str
    location: str
    cache: Path
    cache_gb: float | None
    verify: bool
    metrics_port: int
    max_sessions: int | None
    min_price: str | None
