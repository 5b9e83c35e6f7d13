"""Rebalances: changes of nodes' spans, from the proposal to the switch. Postgres owns them.

All nodes of a rebalance load while they serve what they served. When the last has loaded, all spans
change in one transaction, and routes use the new spans from then on: at no moment is a layer
between one node's new span and another's old span without a node.
"""

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

from redis.asyncio import Redis
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.nodes import live_registry
from market.nodes.tables import RegisteredNode
from market.placement.solver import RebalancePlan, Span
from market.placement.tables import UNDER_WAY, Rebalance
from mesh import redis_keys


@dataclass(frozen=True, slots=True)
class SpanSwitch:
    """A node's new span, which routes are to use."""

    node_id: str
    span: Span

    @property
    def edge(self) -> bool:
        """Whether the node holds the edge: so does every node that serves layer 0."""
        return self.span[0] == 0


LOCK_SPACE = 0x70_6C_61_63
"""First half of the advisory locks' keys; the second is the model's."""


async def lock(db: AsyncSession, model_id: str) -> None:
    """Let nobody else place the model's nodes until the transaction ends."""
    await db.execute(text("SELECT pg_advisory_xact_lock(:space, :model)"), _keys(model_id))


async def try_lock(db: AsyncSession, model_id: str) -> bool:
    """Let nobody else place the model's nodes until the transaction ends; false if another
    transaction has locked them."""
    query = text("SELECT pg_try_advisory_xact_lock(:space, :model)")
    return bool(await db.scalar(query, _keys(model_id)))


async def under_way(db: AsyncSession, model_id: str) -> Rebalance | None:
    """The rebalance of a model that is under way, locked until the transaction ends; or none."""
    found: Rebalance | None = await db.scalar(
        select(Rebalance)
        .where(Rebalance.model_id == model_id, Rebalance.state.in_(UNDER_WAY))
        .with_for_update()
    )
    return found


async def begin(db: AsyncSession, model_id: str, plan: RebalancePlan) -> Rebalance:
    """Begin a rebalance. A node that is to have nothing to serve goes on serving its span, which no
    route needs then.

    Raises:
        IntegrityError: another rebalance of the model is under way.
    """
    changes = [change for change in plan.changes if change.new is not None]
    row = Rebalance(
        model_id=model_id,
        changes=[
            {
                "node_id": change.node_id,
                "old": change.old and list(change.old),
                "new": change.new and list(change.new),
                "loaded": False,
            }
            for change in changes
        ],
        steps_before=plan.before,
        steps_after=plan.after,
        load_seconds=plan.load_seconds,
    )
    db.add(row)
    await db.flush()
    return row


async def record_loaded(db: AsyncSession, rebalance: Rebalance, node_id: str) -> list[SpanSwitch]:
    """Record that a node has loaded its new span. If it was the last, all nodes switch.

    The rebalance fails, and no node switches, if the span of one of its nodes is not the platform's
    to choose any more.

    Returns:
        The new spans of all nodes, if they switched; else nothing.
    """
    rebalance.changes = [
        change | {"loaded": change["loaded"] or change["node_id"] == node_id}
        for change in rebalance.changes
    ]
    if not all(change["loaded"] for change in rebalance.changes):
        return []
    movable = await db.scalars(
        select(RegisteredNode.node_id)
        .where(
            RegisteredNode.node_id.in_(nodes_of(rebalance)),
            RegisteredNode.model_id == rebalance.model_id,
            RegisteredNode.placeable,
        )
        .with_for_update()
    )
    if left := set(nodes_of(rebalance)).difference(movable):
        await fail(db, rebalance, "not to be moved any more", at=left)
        return []
    switches = [SpanSwitch(change["node_id"], tuple(change["new"])) for change in rebalance.changes]
    for switch in switches:
        start, end = switch.span
        await db.execute(
            update(RegisteredNode)
            .where(RegisteredNode.node_id == switch.node_id)
            .values(start_layer=start, end_layer=end, edge=switch.edge)
        )
    await _end(db, rebalance, "switched")
    return switches


async def fail(
    db: AsyncSession,
    rebalance: Rebalance,
    reason: str,
    *,
    at: Collection[str],
    state: Literal["failed", "expired"] = "failed",
) -> None:
    """End a rebalance; all nodes keep their spans. ``at``: ids of the nodes for which it ends, for
    all of which the reason holds."""
    rebalance.reason = f"{reason}: {', '.join(sorted(at))}"[:100]
    rebalance.changes = [
        change | {"failed": change["node_id"] in at} for change in rebalance.changes
    ]
    await _end(db, rebalance, state)


def not_loaded(rebalance: Rebalance) -> list[str]:
    """Ids of the nodes of a rebalance that have not loaded their new spans."""
    return [change["node_id"] for change in rebalance.changes if not change["loaded"]]


async def publish_switches(redis: Redis, switches: Sequence[SpanSwitch]) -> None:
    """Let routes use the new spans. If this is lost, the nodes' next heartbeats do it."""
    for switch in switches:
        await live_registry.change_span(redis, switch.node_id, switch.span, edge=switch.edge)
        await redis.delete(redis_keys.assignment(switch.node_id))


async def publish_assignments(redis: Redis, rebalance: Rebalance, *, ttl: float) -> None:
    """Write the span that each node of a rebalance is to load where its heartbeat reads it, for
    ``ttl`` seconds. Called again and again, since Redis may have lost it."""
    for change in rebalance.changes:
        key = redis_keys.assignment(change["node_id"])
        start, end = change["new"]
        await redis.hset(key, mapping={"start": start, "end": end})  # type: ignore[misc]
        await redis.pexpire(key, round(ttl * 1000))


async def record_asked(redis: Redis, node_id: str, now: float) -> bool:
    """Record that a node has asked for its assignment; true if it is the first time."""
    return bool(await redis.hset(redis_keys.assignment(node_id), "asked", str(now)))  # type: ignore[misc]


async def withdraw_assignments(redis: Redis, rebalance: Rebalance) -> None:
    """Let the heartbeats of a rebalance's nodes find no assignment any more."""
    for node_id in nodes_of(rebalance):
        await redis.delete(redis_keys.assignment(node_id))


async def asked_at(redis: Redis, node_id: str) -> float | None:
    """When a node last asked for its assignment (Unix time); none if it has not."""
    found = await redis.hget(redis_keys.assignment(node_id), "asked")  # type: ignore[misc]
    return None if found is None else float(found)


async def assigned_span(redis: Redis, node_id: str) -> tuple[int, int] | None:
    """The span that a node is to load, the end not included; none if it has nothing to load."""
    start, end = await redis.hmget(redis_keys.assignment(node_id), ["start", "end"])  # type: ignore[misc]
    return None if start is None or end is None else (int(start), int(end))


async def failed_within(db: AsyncSession, model_id: str, seconds: float) -> set[str]:
    """Ids of nodes for which rebalances failed or expired within the last ``seconds``, and of all
    nodes of their wallets; not of the others that were to change with them."""
    rows = await db.scalars(
        select(Rebalance).where(
            Rebalance.model_id == model_id,
            Rebalance.state.in_(("failed", "expired")),
            Rebalance.ended_at > func.now() - dt.timedelta(seconds=seconds),
        )
    )
    failed = {
        change["node_id"]
        for rebalance in rows
        for change in rebalance.changes
        if change.get("failed", True)  # rows of older versions do not say for which
    }
    wallets = select(RegisteredNode.wallet_address).where(RegisteredNode.node_id.in_(failed))
    siblings = await db.scalars(
        select(RegisteredNode.node_id).where(
            RegisteredNode.model_id == model_id, RegisteredNode.wallet_address.in_(wallets)
        )
    )
    return failed | set(siblings)


async def switched_within(db: AsyncSession, model_id: str, seconds: float) -> bool:
    """Whether a rebalance of the model took effect within the last ``seconds``."""
    found = await db.scalar(
        select(Rebalance.id)
        .where(
            Rebalance.model_id == model_id,
            Rebalance.state == "switched",
            Rebalance.ended_at > func.now() - dt.timedelta(seconds=seconds),
        )
        .limit(1)
    )
    return found is not None


def nodes_of(rebalance: Rebalance) -> list[str]:
    """Ids of the nodes that a rebalance changes."""
    return [change["node_id"] for change in rebalance.changes]


async def _end(db: AsyncSession, rebalance: Rebalance, state: str) -> None:
    rebalance.state = state
    rebalance.ended_at = await db.scalar(select(func.now()))
    metrics.placement_moves.labels(rebalance.model_id, state).inc()


def _keys(model_id: str) -> dict[str, int]:
    return {"space": LOCK_SPACE, "model": crc32(model_id.encode()) - 2**31}
