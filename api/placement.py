"""Where a node is to serve: a new one by its registration, and each by its heartbeats' answers."""

import datetime as dt
import time
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.services import Services
from api.schemas.nodes import HeartbeatBody, RegistrationBody
from market.catalog.models import Model
from market.errors import InvalidRequest
from market.nodes import live_lookup, live_registry
from market.nodes.node import Node
from market.nodes.registered_node import node_of, trusts
from market.nodes.tables import RegisteredNode
from market.placement import cluster, rebalances, speed_averages
from market.placement.solver import Candidate, Span, join
from market.placement.tables import Rebalance
from mesh import redis_keys

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Assignment:
    """``span``: what the node is to serve; none if that is not known. ``should_rebalance``: it is
    to load that, and serve on until then."""

    span: Span | None
    should_rebalance: bool = False


async def place(
    services: Services,
    db: AsyncSession,
    model: Model,
    body: RegistrationBody,
    known: RegisteredNode | None,
) -> dict[str, Any]:
    """The columns that say where a node serves which leaves that to us: the span that it had, if it
    comes back, else the one with which it helps most. The model is locked, so that two that come at
    once do not get the same.

    Args:
        known: Its row, if it comes back.

    Raises:
        InvalidRequest: it holds no layer of the model.
        UnsupportedModel: the model cannot be quantized as it says.
    """
    how = services.settings.placement
    nodes = [
        node
        for node in await live_lookup.healthy_nodes(services.redis, model.id)
        if known is None or node.node_id != known.node_id
    ]
    nodes += await _loading(services, db, model, {node.node_id for node in nodes})
    speeds = await speed_averages.averages(services.redis, model.id)
    seen = cluster.cluster_of(nodes, model, positions=how.positions, speeds=speeds)
    newcomer = cluster.newcomer(
        "",
        model,
        quantization=body.quantization,
        vram_gb=body.vram_gb,
        memory_bytes=body.memory_bytes,
        trusted=trusts(services.settings.discovery, body.wallet_address),
        positions=how.positions,
        speed=cluster.usual_speed(speeds),
    )
    span = (
        _as_before(newcomer, known, model)
        or join(newcomer, seen.by_id, seen.spans, seen.shape)
        or _beside(newcomer, seen)
    )
    if span is None:
        raise InvalidRequest(
            f"{body.memory_bytes} bytes hold no layer of this model with the KV cache that it "
            "needs. Give the node more memory, or quantize.",
            code="memory_bytes_too_small",
        )
    return {"start_layer": span[0], "end_layer": span[1], "edge": span[0] == 0}


async def begin_again(
    db: AsyncSession, known: RegisteredNode, body: RegistrationBody
) -> Rebalance | None:
    """What a node's earlier process had loaded for a move is gone with it. If the node is not the
    platform's to move any more, or serves another model, so is the move.

    Returns:
        The move that is given up: its orders are to be taken back after the transaction.
    """
    move = await _move_of(db, known.node_id)
    await db.refresh(known)  # a move may just have switched
    if move is None:
        return None
    if body.placeable and body.model_id == known.model_id:
        move.changes = [
            change | {"loaded": change["loaded"] and change["node_id"] != known.node_id}
            for change in move.changes
        ]
        return None
    await rebalances.fail(db, move, f"its owner has another span for {known.node_id}")
    log.info("move_ended", model_id=move.model_id, state=move.state, reason=move.reason)
    return move


async def answer(services: Services, node_id: str, body: HeartbeatBody) -> Assignment:
    """What a heartbeat is told. A round trip to Redis, unless a move has something for the node."""
    redis = services.redis
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(redis_keys.assignment(node_id), ["start", "end"])
        pipe.hmget(redis_keys.node(node_id), ["start_layer", "end_layer"])
        ordered, current = (_span(pair) for pair in await pipe.execute())
    if ordered is None:
        return Assignment(current or await _registered(services, node_id))
    first = await rebalances.note_asked(redis, node_id, time.time())
    if not first and ordered not in body.serves and body.cannot_serve != ordered:
        return Assignment(ordered, should_rebalance=True)
    return await _go_on(services, node_id, body, ordered)


async def _go_on(
    services: Services, node_id: str, body: HeartbeatBody, ordered: Span
) -> Assignment:
    """A move's node has begun to load, has loaded, or cannot."""
    switches: list[rebalances.SpanSwitch] = []
    async with services.sessions.begin() as db:
        move = await _move_of(db, node_id)
        if move is not None and body.cannot_serve == ordered:
            await rebalances.fail(db, move, f"{node_id} could not load its span")
        elif move is not None and ordered in body.serves:
            switches = await rebalances.loaded(db, move, node_id)
        elif move is not None:
            move.state = "loading"
        still = move is not None and move.ended_at is None
    if still:
        return Assignment(ordered, should_rebalance=True)
    if move is None:
        await services.redis.delete(redis_keys.assignment(node_id))
    else:
        await rebalances.withdraw_assignments(services.redis, move)
        await rebalances.announce(services.redis, switches)
        log.info("move_ended", model_id=move.model_id, state=move.state, reason=move.reason)
    span = await _registered(services, node_id)
    if span is not None and not switches:  # who switched did not live to tell the routes
        await live_registry.change_span(services.redis, node_id, span, edge=span[0] == 0)
    return Assignment(span)


async def _loading(
    services: Services, db: AsyncSession, model: Model, known: set[str]
) -> list[Node]:
    """Nodes that have registered and not been heard yet: they count with the span that they got."""
    limit = dt.timedelta(seconds=services.settings.placement.loading_limit)
    rows = await db.scalars(
        select(RegisteredNode).where(
            RegisteredNode.model_id == model.id,
            RegisteredNode.last_seen.is_(None),
            RegisteredNode.registered_at > func.now() - limit,
        )
    )
    return [node_of(row, services.settings.discovery) for row in rows if row.node_id not in known]


def _as_before(newcomer: Candidate, known: RegisteredNode | None, model: Model) -> Span | None:
    """Its checkpoint is on its disk, and others count on its coming back."""
    if known is None or known.model_id != model.id or not known.placeable:
        return None
    span = (known.start_layer, known.end_layer)
    return span if span[1] <= model.layers and newcomer.holds(span) else None


async def _move_of(db: AsyncSession, node_id: str) -> Rebalance | None:
    """The move under way that changes a node."""
    model_id = await db.scalar(
        select(RegisteredNode.model_id).where(RegisteredNode.node_id == node_id)
    )
    move = None if model_id is None else await rebalances.under_way(db, model_id)
    return move if move is not None and node_id in rebalances.nodes_of(move) else None


def _beside(newcomer: Candidate, seen: cluster.Cluster) -> Span | None:
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
            select(RegisteredNode.start_layer, RegisteredNode.end_layer).where(
                RegisteredNode.node_id == node_id
            )
        )
        row = found.one_or_none()
    return None if row is None else (row.start_layer, row.end_layer)


def _span(pair: list[bytes | None]) -> Span | None:
    start, end = pair
    return None if start is None or end is None else (int(start), int(end))
