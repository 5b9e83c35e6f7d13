"""Who serves what: active nodes (§7.3, and §3.2.3's paths) and models (§7.1)."""

import datetime as dt
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.http.services import Services, WithServices
from api.routes import nodes
from api.schemas.base import Label, shown
from market.money import plain
from market.nodes import live_lookup
from market.nodes.node import LocationSource, Node
from market.routing import route_search, tiers

router = APIRouter(tags=["discovery"])

service = APIRouter(prefix="/nodes", tags=["discovery"])
"""The paths that the specification's discovery service has. They do what the others do."""

service.post("/register")(nodes.register)
service.post("/heartbeat")(nodes.heartbeat)


class ActiveNode(BaseModel):
    node_id: str
    wallet_address: str
    model_id: str
    gpu_model: str
    vram_gb: int
    location: str
    located: LocationSource
    """Whether its address told the location (`geoip`) or the node itself (`declared`)."""
    layers_served: list[int]
    edge: bool
    quantization: str
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


class CountedNodes(BaseModel):
    nodes: list[ActiveNode]
    count: int


class ModelOnOffer(BaseModel):
    id: str
    name: str
    active_nodes: int
    available: bool
    """Whether every layer has a healthy node now that serves for the price."""
    avg_latency_ms: float | None
    """Of one token along the best route, with its hops; none while there is no route."""
    price_per_token_far: float
    price_per_token_far_exact: str
    min_vram_gb: int
    layers: int
    context_tokens: int


class Models(BaseModel):
    models: list[ModelOnOffer]


@router.get("/api/discovery/nodes/active/{model_id:path}")
async def active_nodes(model_id: str, services: WithServices) -> ActiveNodes:
    """Healthy nodes of a model, heard within the last two minutes."""
    nodes = await _active(services, model_id)
    return ActiveNodes(model_id=model_id, total_nodes=len(nodes), nodes=nodes)


@service.get("/active/{model_id:path}")
async def active_nodes_of_service(
    model_id: str, services: WithServices, location: Annotated[Label | None, Query()] = None
) -> CountedNodes:
    """The same, as the specification's discovery service answers; of one location, if asked for."""
    nodes = await _active(services, model_id)
    if location is not None:
        nodes = [node for node in nodes if node.location == location]
    return CountedNodes(nodes=nodes, count=len(nodes))


@router.get("/api/inference/models")
async def models(services: WithServices) -> Models:
    """Models on offer, with their price now."""
    offers = []
    for model in services.catalog:
        nodes = await live_lookup.available_nodes(services.redis, model.id)
        fair = tiers.price_rule(model.price_per_token)
        route = route_search.cheapest_route(nodes, model.layers, admits=fair)
        offers.append(
            ModelOnOffer(
                id=model.id,
                name=model.name,
                active_nodes=len(nodes),
                available=route is not None and len(nodes) >= model.min_nodes,
                avg_latency_ms=_step_ms(route) if route else None,
                price_per_token_far=shown(model.price_per_token),
                price_per_token_far_exact=plain(model.price_per_token),
                min_vram_gb=model.min_vram_gb,
                layers=model.layers,
                context_tokens=model.context,
            )
        )
    return Models(models=offers)


async def _active(services: Services, model_id: str) -> list[ActiveNode]:
    services.catalog.get(model_id)
    return [_shown(node) for node in await live_lookup.available_nodes(services.redis, model_id)]


def _shown(node: Node) -> ActiveNode:
    """Without its address: nobody has to reach a node, and providers need not be found."""
    return ActiveNode(
        node_id=node.node_id,
        wallet_address=node.wallet_address,
        model_id=node.model_id,
        gpu_model=node.gpu_model,
        vram_gb=node.vram_gb,
        location=node.location,
        located=node.located,
        layers_served=node.layers_served,
        edge=node.edge,
        quantization=node.quantization,
        is_healthy=node.is_healthy,
        last_seen=dt.datetime.fromtimestamp(node.last_seen, dt.UTC),
        avg_latency_ms=node.latency_ms + node.hop_ms,
        hop_ms=node.hop_ms,
        throughput_tokens_per_sec=node.throughput_tokens_per_sec,
        current_requests=node.current_requests,
        gpu_utilization_percent=node.gpu_utilization_percent,
        vram_used_gb=node.vram_used_gb,
    )


def _step_ms(route: Sequence[Node]) -> float:
    return sum(node.latency_ms + node.hop_ms for node in route)
