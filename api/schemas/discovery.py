"""Active and announced nodes."""

import datetime as dt

from pydantic import BaseModel

from market.nodes.node import LocationSource


class Dht(BaseModel):
    """How to join the DHT, and whose word counts there."""

    operator_key: str | None
    """Ed25519 key in hex: pin it (`far-node start --operator-key`). None where there is no DHT."""
    peers: list[str]
    """Multiaddresses."""


class AnnouncedNode(BaseModel):
    node_id: str
    layers_served: list[int]
    avg_latency_ms: float
    throughput_tokens_per_sec: float
    expires: float
    """Unix time."""
    on_routes: bool
    """Whether it is on the routes, too: alive and healthy by its heartbeats."""


class AnnouncedNodes(BaseModel):
    model_id: str
    total_nodes: int
    nodes: list[AnnouncedNode]


class ActiveNode(BaseModel):
    node_id: str
    wallet_address: str
    model_id: str
    gpu_model: str
    vram_gb: int
    location: str
    located: LocationSource
    """Whether the location is its address's (`geoip`) or its own word (`declared`)."""
    layers_served: list[int]
    edge: bool
    quantization: str
    batch_invariant: bool
    """Whether it says that a generation's tokens are the same whoever runs beside."""
    is_healthy: bool
    last_seen: dt.datetime
    reliability_score: float | None = None
    """None: nothing measures it yet, and a node's own word would be worth nothing."""
    avg_latency_ms: float
    """One step: computing, smoothed by the node over its last hundred, and `hop_ms`."""
    hop_ms: float
    """Of it, a message to the node and back; 0 where that is not measured."""
    throughput_tokens_per_sec: float
    current_requests: int
    gpu_utilization_percent: float
    vram_used_gb: float


class ActiveNodes(BaseModel):
    model_id: str
    total_nodes: int
    nodes: list[ActiveNode]


class NodeList(BaseModel):
    nodes: list[ActiveNode]
    count: int


class ProbeAnswer(BaseModel):
    bytes: int
