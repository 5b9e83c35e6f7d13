"""Who serves what: active nodes (§7.3) and models (§7.1)."""

from fastapi import APIRouter
from pydantic import BaseModel

from api.services import WithServices
from mesh import registry, routing
from mesh.money import plain
from mesh.schemas import shown

router = APIRouter(tags=["discovery"])


class ActiveNode(BaseModel):
    node_id: str
    wallet_address: str
    gpu_model: str
    vram_gb: int
    location: str
    layers_served: list[int]
    reliability_score: float | None = None
    """None: nothing measures it yet, and a node's own word would be worth nothing."""
    avg_latency_ms: float
    edge: bool


class ActiveNodes(BaseModel):
    model_id: str
    total_nodes: int
    nodes: list[ActiveNode]


class ModelOnOffer(BaseModel):
    id: str
    name: str
    active_nodes: int
    available: bool
    """Whether every layer has a healthy node now."""
    avg_latency_ms: float | None
    """Computing of one token along the best route; none while there is no route."""
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
    services.catalog.get(model_id)
    nodes = await registry.active(services.redis, model_id)
    return ActiveNodes(
        model_id=model_id,
        total_nodes=len(nodes),
        nodes=[
            ActiveNode(
                node_id=node.node_id,
                wallet_address=node.wallet_address,
                gpu_model=node.gpu_model,
                vram_gb=node.vram_gb,
                location=node.location,
                layers_served=node.layers_served,
                avg_latency_ms=node.latency_ms,
                edge=node.edge,
            )
            for node in nodes
        ],
    )


@router.get("/api/inference/models")
async def models(services: WithServices) -> Models:
    """Models on offer, with their price now."""
    offers = []
    for model in services.catalog:
        nodes = await registry.active(services.redis, model.id)
        route = routing.choose(nodes, model.layers)
        offers.append(
            ModelOnOffer(
                id=model.id,
                name=model.name,
                active_nodes=len(nodes),
                available=route is not None and len(nodes) >= model.min_nodes,
                avg_latency_ms=sum(node.latency_ms for node in route) if route else None,
                price_per_token_far=shown(model.price_per_token),
                price_per_token_far_exact=plain(model.price_per_token),
                min_vram_gb=model.min_vram_gb,
                layers=model.layers,
                context_tokens=model.context,
            )
        )
    return Models(models=offers)
