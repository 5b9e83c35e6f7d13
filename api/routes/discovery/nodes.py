"""Who serves what: active nodes (§7.3, and §3.2.3's paths) and models (§7.1)."""

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.http import rate_limits
from api.http.authentication import OPTIONAL
from api.http.public_reads import PublicReads, WithReads, encoded, json_response
from api.http.services import Services, WithServices
from api.routes import nodes
from api.schemas.base import Label
from api.schemas.discovery import ActiveNode, ActiveNodes, NodeList
from market.nodes import live_lookup
from market.nodes.node import Node

router = APIRouter(tags=["discovery"])

service_router = APIRouter(prefix="/nodes", tags=["discovery"])
"""The paths that the specification's discovery service has, beside those under `/api`."""

service_router.post("/register", openapi_extra=OPTIONAL)(nodes.register)


service_router.post("/heartbeat")(nodes.heartbeat)


@dataclass(frozen=True, slots=True)
class EncodedNode:
    """An active node as its callers get it, and where it is."""

    location: str
    json: bytes


@router.get(
    "/api/discovery/nodes/active/{model_id:path}",
    response_model=ActiveNodes,
    dependencies=[rate_limits.READS.by_address()],
)
async def active_nodes(model_id: str, services: WithServices, reads: WithReads) -> Response:
    """Healthy nodes of a model, whose last heartbeat came within two minutes."""
    nodes = await _active(services, reads, model_id)
    name = json.dumps(model_id).encode()
    return json_response(
        b'{"model_id":%b,"total_nodes":%d,"nodes":%b}' % (name, len(nodes), _list(nodes))
    )


@service_router.get(
    "/active/{model_id:path}",
    response_model=NodeList,
    dependencies=[rate_limits.READS.by_address()],
)
async def active_nodes_of_service(
    model_id: str,
    services: WithServices,
    reads: WithReads,
    location: Annotated[Label | None, Query()] = None,
) -> Response:
    """Healthy nodes of a model, as the specification's discovery service answers; of one location,
    if asked for."""
    nodes = await _active(services, reads, model_id)
    if location is not None:
        nodes = [node for node in nodes if node.location == location]
    return json_response(b'{"nodes":%b,"count":%d}' % (_list(nodes), len(nodes)))


async def _active(services: Services, reads: PublicReads, model_id: str) -> list[EncodedNode]:
    services.catalog.get(model_id)

    async def read() -> list[EncodedNode]:
        nodes = await live_lookup.available_nodes(services.redis, model_id)
        return [EncodedNode(node.location, encoded(_active_node(node))) for node in nodes]

    return await reads.get(("active", model_id), read)


def _list(nodes: Iterable[EncodedNode]) -> bytes:
    return b"[%b]" % b",".join(node.json for node in nodes)


def _active_node(node: Node) -> ActiveNode:
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
        batch_invariant=node.batch_invariant,
        is_healthy=node.is_healthy,
        last_seen=dt.datetime.fromtimestamp(node.last_seen, dt.UTC),
        avg_latency_ms=node.latency_ms + node.hop_ms,
        hop_ms=node.hop_ms,
        throughput_tokens_per_sec=node.throughput_tokens_per_sec,
        current_requests=node.current_requests,
        gpu_utilization_percent=node.gpu_utilization_percent,
        vram_used_gb=node.vram_used_gb,
    )
