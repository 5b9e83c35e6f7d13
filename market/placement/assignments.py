"""The span in the answer to a heartbeat: to serve, or to load."""

import time

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from market.nodes import live_registry
from market.nodes.tables import RegisteredNode
from market.placement import rebalances
from market.placement.solver import Span
from market.placement.tables import Rebalance
from market.resources import Resources
from mesh import redis_keys
from mesh.node_api import Heartbeat, HeartbeatReply, NodeRegistration

log = structlog.get_logger()


async def record_restart(
    db: AsyncSession, known: RegisteredNode, node: NodeRegistration
) -> Rebalance | None:
    """A node registers again: what its earlier process had loaded for a rebalance is gone with that
    process. If the platform does not choose the node's span any more, or the node serves another
    model, the rebalance has failed.

    Returns:
        The rebalance if it failed, to withdraw its assignments after the transaction; else none.
    """
    rebalance = await _rebalance_of(db, known.node_id)
    await db.refresh(known)  # a rebalance may just have switched
    if rebalance is None:
        return None
    if node.placeable and node.model_id == known.model_id:
        rebalance.changes = [
            change | {"loaded": change["loaded"] and change["node_id"] != known.node_id}
            for change in rebalance.changes
        ]
        return None
    await rebalances.fail(db, rebalance, "its owner has another span", at=[known.node_id])
    _log_end(rebalance)
    return rebalance


async def assignment_for(
    resources: Resources, node_id: str, heartbeat: Heartbeat
) -> HeartbeatReply:
    """The answer to a heartbeat. One round trip to Redis, unless a rebalance changes the node."""
    redis = resources.redis
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(redis_keys.assignment(node_id), ["start", "end"])
        pipe.hmget(redis_keys.node(node_id), ["start_layer", "end_layer"])
        assigned, current = (_span(pair) for pair in await pipe.execute())
    if assigned is None:
        return _reply(current or await _registered(resources, node_id))
    first = await rebalances.record_asked(redis, node_id, time.time())
    if not first and assigned not in heartbeat.serves and heartbeat.cannot_serve != assigned:
        return _reply(assigned, should_rebalance=True)
    return await _advance(resources, node_id, heartbeat, assigned)


async def _advance(
    resources: Resources, node_id: str, heartbeat: Heartbeat, assigned: Span
) -> HeartbeatReply:
    """Record that a node of a rebalance has begun to load, has loaded, or cannot load."""
    switches: list[rebalances.SpanSwitch] = []
    async with resources.sessions.begin() as db:
        rebalance = await _rebalance_of(db, node_id)
        if rebalance is not None and heartbeat.cannot_serve == assigned:
            await rebalances.fail(db, rebalance, "could not load its span", at=[node_id])
        elif rebalance is not None and assigned in heartbeat.serves:
            switches = await rebalances.record_loaded(db, rebalance, node_id)
        elif rebalance is not None:
            rebalance.state = "loading"
        under_way = rebalance is not None and rebalance.ended_at is None
    if under_way:
        return _reply(assigned, should_rebalance=True)
    if rebalance is None:
        await resources.redis.delete(redis_keys.assignment(node_id))
    else:
        await rebalances.withdraw_assignments(resources.redis, rebalance)
        await rebalances.publish_switches(resources.redis, switches)
        _log_end(rebalance)
    span = await _registered(resources, node_id)
    if (
        span is not None and not switches
    ):  # whoever switched the spans may have ended before routes used them
        await live_registry.change_span(resources.redis, node_id, span, edge=span[0] == 0)
    return _reply(span)


async def _rebalance_of(db: AsyncSession, node_id: str) -> Rebalance | None:
    """The rebalance under way that changes a node; none if none does."""
    model_id = await db.scalar(
        select(RegisteredNode.model_id).where(RegisteredNode.node_id == node_id)
    )
    rebalance = None if model_id is None else await rebalances.under_way(db, model_id)
    if rebalance is None or node_id not in rebalances.nodes_of(rebalance):
        return None
    return rebalance


async def _registered(resources: Resources, node_id: str) -> Span | None:
    async with resources.sessions() as db:
        found = await db.execute(
            select(RegisteredNode.start_layer, RegisteredNode.end_layer).where(
                RegisteredNode.node_id == node_id
            )
        )
        row = found.one_or_none()
    return None if row is None else (row.start_layer, row.end_layer)


def _log_end(rebalance: Rebalance) -> None:
    log.info(
        "rebalance_ended",
        model_id=rebalance.model_id,
        state=rebalance.state,
        reason=rebalance.reason,
    )


def _reply(span: Span | None, *, should_rebalance: bool = False) -> HeartbeatReply:
    start, end = span or (None, None)
    return HeartbeatReply(should_rebalance=should_rebalance, start_layer=start, end_layer=end)


def _span(pair: list[bytes | None]) -> Span | None:
    start, end = pair
    return None if start is None or end is None else (int(start), int(end))
