"""What the DHT says of nodes. Who is paid, and who is on the routes, stands in `discovery`."""

from fastapi import APIRouter
from pydantic import BaseModel

from api.http.services import WithServices
from market.dht import credentials, directory
from market.nodes import live_lookup

router = APIRouter(prefix="/api/discovery/dht", tags=["discovery"])


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
    """Whether the platform knows it as alive and healthy, too."""


class AnnouncedNodes(BaseModel):
    model_id: str
    total_nodes: int
    nodes: list[AnnouncedNode]


@router.get("")
async def dht(services: WithServices) -> Dht:
    """Where the DHT is, and the key that its records go back to."""
    operator = credentials.operator_key(services)
    return Dht(
        operator_key=operator.public.hex() if operator else None,
        peers=await credentials.peers(services) if operator else [],
    )


@router.get("/{model_id:path}")
async def announced(model_id: str, services: WithServices) -> AnnouncedNodes:
    """Nodes of a model that announce themselves in the DHT, with their own word for it."""
    services.catalog.get(model_id)
    told = await directory.read(services.redis, model_id)
    on_routes = {
        node.node_id for node in await live_lookup.available_nodes(services.redis, model_id)
    }
    return AnnouncedNodes(
        model_id=model_id,
        total_nodes=len(told),
        nodes=[
            AnnouncedNode(
                node_id=each.node_id,
                layers_served=list(range(each.start_layer, each.end_layer)),
                avg_latency_ms=each.latency_ms,
                throughput_tokens_per_sec=each.throughput_tokens_per_sec,
                expires=each.expires,
                on_routes=each.node_id in on_routes,
            )
            for each in told
        ],
    )
