"""Where a node is to serve: a new one by its registration, and each by its heartbeats' answers."""

import datetime as dt
import time
from dataclasses import dataclass

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.services import Services
from mesh import moves, names, registry, smoothing, swarm
from mesh.catalog import Model
from mesh.db import NodeRegistry
from mesh.errors import InvalidRequest
from mesh.placement import Candidate, Span, join
from mesh.registry import Node
from mesh.schemas import NodeHealth, NodeRegistration

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Orders:
    """``span``: what the node is to serve; none if that is not known. ``should_rebalance``: it is
    to load that, and serve on until then."""

    span: Span | None
    should_rebalance: bool = False


async def place_newcomer(
    services: Services, db: AsyncSession, model: Model, body: NodeRegistration, *, trusted: bool
) -> Span:
    """The span with which a node that leaves it to us helps most. Nobody else is given one until
    the transaction ends, so that two that come at once do not get the same.

    Raises:
        InvalidRequest: it holds no layer of the model.
        UnsupportedModel: the model cannot be quantized as it says.
    """
    how = services.settings.placement
    await moves.lock(db, model.id)
    nodes = await registry.alive(services.redis, model.id)
    nodes += await _loading(services, db, model, {node.node_id for node in nodes})
    speeds = await smoothing.means(services.redis, model.id)
    seen = swarm.swarm_of(nodes, model, positions=how.positions, speeds=speeds)
    newcomer = swarm.newcomer(
        "",
        model,
        quantization=body.quantization,
        vram_gb=body.vram_gb,
        memory_bytes=body.memory_bytes,
        trusted=trusted,
        positions=how.positions,
        speed=swarm.usual_speed(speeds),
    )
    span = join(newcomer, seen.by_id, seen.spans, seen.shape) or _beside(newcomer, seen)
    if span is None:
        raise InvalidRequest(
            f"{body.memory_bytes} bytes hold no layer of this model with the KV cache that it "
            "needs. Give the node more memory, or quantize.",
            code="memory_bytes_too_small",
        )
    return span


async def answer(services: Services, node_id: str, model_id: str, body: NodeHealth) -> Orders:
    """What a heartbeat is told. A round trip to Redis, unless a move has something for the node."""
    redis = services.redis
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(names.orders(node_id), ["start", "end"])
        pipe.hmget(names.node(node_id), ["start_layer", "end_layer"])
        ordered, current = (_span(pair) for pair in await pipe.execute())
    if ordered is None:
        return Orders(current or await _registered(services, node_id))
    first = await moves.note_asked(redis, node_id, time.time())
    if not first and ordered not in body.serves and body.cannot_serve != ordered:
        return Orders(ordered, should_rebalance=True)
    return await _go_on(services, node_id, model_id, body, ordered)


async def _go_on(
    services: Services, node_id: str, model_id: str, body: NodeHealth, ordered: Span
) -> Orders:
    """A move's node has begun to load, has loaded, or cannot."""
    switches: list[moves.Switch] = []
    async with services.sessions.begin() as db:
        move = await moves.under_way(db, model_id)
        if move is not None and node_id not in moves.nodes_of(move):
            move = None
        if move is not None and body.cannot_serve == ordered:
            await moves.fail(db, move, f"{node_id} could not load its span")
        elif move is not None and ordered in body.serves:
            switches = await moves.loaded(db, move, node_id)
        elif move is not None:
            move.state = "loading"
        still = move is not None and move.ended_at is None
    if still:
        return Orders(ordered, should_rebalance=True)
    if move is None:
        await services.redis.delete(names.orders(node_id))
    else:
        await moves.take_back_orders(services.redis, move)
        await moves.announce(services.redis, switches)
        log.info("move_ended", model_id=model_id, state=move.state, reason=move.reason)
    span = await _registered(services, node_id)
    if span is not None and not switches:  # who switched did not live to tell the routes
        await registry.move(services.redis, node_id, span, edge=span[0] == 0)
    return Orders(span)


async def _loading(
    services: Services, db: AsyncSession, model: Model, known: set[str]
) -> list[Node]:
    """Nodes that have registered and not been heard yet: they count with the span that they got."""
    limit = dt.timedelta(seconds=services.settings.placement.loading_limit)
    rows = await db.scalars(
        select(NodeRegistry).where(
            NodeRegistry.model_id == model.id,
            NodeRegistry.last_seen.is_(None),
            NodeRegistry.registered_at > func.now() - limit,
        )
    )
    return [_expected(services, row) for row in rows if row.node_id not in known]


def _expected(services: Services, row: NodeRegistry) -> Node:
    return Node(
        node_id=row.node_id,
        wallet_address=row.wallet_address,
        model_id=row.model_id,
        start_layer=row.start_layer,
        end_layer=row.end_layer,
        edge=row.edge,
        trusted=is_trusted(services, row.wallet_address),
        gpu_model=row.gpu_model or "",
        vram_gb=row.vram_gb or 0,
        location=row.location or "",
        public_addr=row.public_addr or "",
        is_healthy=True,
        latency_ms=0.0,
        throughput_tokens_per_sec=0.0,
        current_requests=0,
        kv_positions=0,
        last_seen=0.0,
    )


def is_trusted(services: Services, wallet: str) -> bool:
    """Whether the operator trusts a wallet's nodes with the edge."""
    trusted = services.settings.discovery.trusted_wallets
    return wallet.lower() in {known.lower() for known in trusted}


def _beside(newcomer: Candidate, seen: swarm.Swarm) -> Span | None:
    """For a node that raises the throughput nowhere: a replica of the slowest span that it holds,
    else as many of the last layers as it holds, where a move may find it."""
    rates: dict[Span, float] = {}
    for node_id, span in seen.spans.items():
        if newcomer.holds(span):
            rates[span] = rates.get(span, 0.0) + seen.by_id[node_id].rate(span, seen.shape)
    if rates:
        return min(rates, key=lambda span: (rates[span], span))
    layers = seen.shape.layers
    return (max(1, layers - newcomer.capacity), layers) if newcomer.capacity else None


async def _registered(services: Services, node_id: str) -> Span | None:
    async with services.sessions() as db:
        found = await db.execute(
            select(NodeRegistry.start_layer, NodeRegistry.end_layer).where(
                NodeRegistry.node_id == node_id
            )
        )
        row = found.one_or_none()
    return None if row is None else (row.start_layer, row.end_layer)


def _span(pair: list[bytes | None]) -> Span | None:
    start, end = pair
    return None if start is None or end is None else (int(start), int(end))
