"""What the DHT says of nodes. Who is paid, and who is on the routes, stands in `discovery`."""

from fastapi import APIRouter, Response

from api.http import rate_limits
from api.http.public_reads import WithReads
from api.http.services import Services, WithServices
from api.schemas.discovery import AnnouncedNode, AnnouncedNodes, Dht
from market.dht import credentials, directory
from market.dht.operator_key import operator_key
from market.nodes import live_lookup

router = APIRouter(prefix="/api/discovery/dht", tags=["discovery"])


@router.get("", response_model=Dht, dependencies=[rate_limits.READS.by_address()])
async def dht(services: WithServices, reads: WithReads) -> Response:
    """Where the DHT is, and the key that its records go back to."""
    discovery = services.settings.discovery

    async def read() -> Dht:
        operator = operator_key(discovery)
        if operator is None:
            return Dht(operator_key=None, peers=[])
        peers = await credentials.bootstrap_peers(services.redis, discovery)
        return Dht(operator_key=operator.public.hex(), peers=peers)

    return await reads.answer(("dht",), read)


@router.get(
    "/{model_id:path}",
    response_model=AnnouncedNodes,
    dependencies=[rate_limits.READS.by_address()],
)
async def announced(model_id: str, services: WithServices, reads: WithReads) -> Response:
    """Nodes of a model that announce themselves in the DHT, with their own word for it."""
    services.catalog.get(model_id)

    async def read() -> AnnouncedNodes:
        return await _announced(services, model_id)

    return await reads.answer(("announced", model_id), read)


async def _announced(services: Services, model_id: str) -> AnnouncedNodes:
    announcements = await directory.read_announcements(services.redis, model_id)
    on_routes = {
        node.node_id for node in await live_lookup.available_nodes(services.redis, model_id)
    }
    return AnnouncedNodes(
        model_id=model_id,
        total_nodes=len(announcements),
        nodes=[
            AnnouncedNode(
                node_id=each.node_id,
                layers_served=list(range(each.start_layer, each.end_layer)),
                avg_latency_ms=each.latency_ms,
                throughput_tokens_per_sec=each.throughput_tokens_per_sec,
                expires=each.expires,
                on_routes=each.node_id in on_routes,
            )
            for each in announcements
        ],
    )
