"""Moves of nodes to other spans, from the proposal to the switch. Postgres owns them.

All nodes of a move load while they serve what they served. When the last has loaded, all spans
change in one transaction, and routes count on them from then on: there is no moment with a hole
between one node's new span and another's old one.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
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
    """A node's new span, on which routes are to count."""

    node_id: str
    span: Span

    @property
    def edge(self) -> bool:
        """Who serves layer 0 holds the edge."""
        return self.span[0] == 0


LOCK_SPACE = 0x70_6C_61_63
"""First half of the advisory locks' keys; the second is the model's."""


async def lock(db: AsyncSession, model_id: str) -> None:
    """Let nobody else place the model's nodes until the transaction ends."""
    await db.execute(text("SELECT pg_advisory_xact_lock(:space, :model)"), _keys(model_id))


async def try_lock(db: AsyncSession, model_id: str) -> bool:
    """The same; false if somebody else does already."""
    taken = text("SELECT pg_try_advisory_xact_lock(:space, :model)")
    return bool(await db.scalar(taken, _keys(model_id)))


async def under_way(db: AsyncSession, model_id: str) -> Rebalance | None:
    """The one move of a model that is, locked until the transaction ends."""
    found: Rebalance | None = await db.scalar(
        select(Rebalance)
        .where(Rebalance.model_id == model_id, Rebalance.state.in_(UNDER_WAY))
        .with_for_update()
    )
    return found


async def record(db: AsyncSession, model_id: str, move: RebalancePlan) -> Rebalance:
    """Begin a move. Who loses its span to others goes on serving it; no route needs it.

    Raises:
        IntegrityError: another move of the model is under way.
    """
    changes = [change for change in move.changes if change.new is not None]
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
        steps_before=move.before,
        steps_after=move.after,
        load_seconds=move.seconds,
    )
    db.add(row)
    await db.flush()
    return row


async def loaded(db: AsyncSession, move: Rebalance, node_id: str) -> list[SpanSwitch]:
    """A node has loaded its new span. What switches, if it was the last; else nothing.

    The move fails if one of its nodes is not there to be moved any more: none switches without it.
    """
    move.changes = [
        change | {"loaded": change["loaded"] or change["node_id"] == node_id}
        for change in move.changes
    ]
    if not all(change["loaded"] for change in move.changes):
        return []
    movable = await db.scalars(
        select(RegisteredNode.node_id)
        .where(
            RegisteredNode.node_id.in_(nodes_of(move)),
            RegisteredNode.model_id == move.model_id,
            RegisteredNode.placeable,
        )
        .with_for_update()
    )
    if left := set(nodes_of(move)).difference(movable):
        await fail(db, move, f"not to be moved any more: {', '.join(sorted(left))}")
        return []
    switches = [SpanSwitch(change["node_id"], tuple(change["new"])) for change in move.changes]
    for switch in switches:
        start, end = switch.span
        await db.execute(
            update(RegisteredNode)
            .where(RegisteredNode.node_id == switch.node_id)
            .values(start_layer=start, end_layer=end, edge=switch.edge)
        )
    await _end(db, move, "switched")
    return switches


async def fail(db: AsyncSession, move: Rebalance, reason: str, *, state: str = "failed") -> None:
    """Nothing changes."""
    move.reason = reason[:100]
    await _end(db, move, state)


async def announce(redis: Redis, switches: Sequence[SpanSwitch]) -> None:
    """Let routes count on the new spans. If this is lost, the nodes' next heartbeats do it."""
    for switch in switches:
        await live_registry.change_span(redis, switch.node_id, switch.span, edge=switch.edge)
        await redis.delete(redis_keys.assignment(switch.node_id))


async def publish_assignments(redis: Redis, move: Rebalance, *, ttl: float) -> None:
    """Put down what each node of a move is to load, where its heartbeat looks. Again and again:
    Redis may have lost it."""
    for change in move.changes:
        key = redis_keys.assignment(change["node_id"])
        start, end = change["new"]
        await redis.hset(key, mapping={"start": start, "end": end})  # type: ignore[misc]
        await redis.pexpire(key, round(ttl * 1000))


async def note_asked(redis: Redis, node_id: str, now: float) -> bool:
    """A node has asked for its orders; whether that was the first time."""
    return bool(await redis.hset(redis_keys.assignment(node_id), "asked", str(now)))  # type: ignore[misc]


async def withdraw_assignments(redis: Redis, move: Rebalance) -> None:
    """Its nodes are not told any more."""
    for node_id in nodes_of(move):
        await redis.delete(redis_keys.assignment(node_id))


async def asked_at(redis: Redis, node_id: str) -> float | None:
    """When a node last asked for its orders (Unix time); none if it has not."""
    found = await redis.hget(redis_keys.assignment(node_id), "asked")  # type: ignore[misc]
    return None if found is None else float(found)


async def assigned_span(redis: Redis, node_id: str) -> tuple[int, int] | None:
    """The span that a node is to load, the end not included; none if it has nothing to load."""
    start, end = await redis.hmget(redis_keys.assignment(node_id), ["start", "end"])  # type: ignore[misc]
    return None if start is None or end is None else (int(start), int(end))


async def failed_lately(db: AsyncSession, model_id: str, seconds: float) -> set[str]:
    """Nodes of moves that came to nothing within so many seconds."""
    rows = await db.scalars(
        select(Rebalance).where(
            Rebalance.model_id == model_id,
            Rebalance.state.in_(("failed", "expired")),
            Rebalance.ended_at > func.now() - dt.timedelta(seconds=seconds),
        )
    )
    return {node_id for move in rows for node_id in nodes_of(move)}


async def ended_within(db: AsyncSession, model_id: str, seconds: float) -> bool:
    """Whether a move of the model took effect so lately."""
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


def nodes_of(move: Rebalance) -> list[str]:
    """Ids of the nodes that a move changes."""
    return [change["node_id"] for change in move.changes]


async def _end(db: AsyncSession, move: Rebalance, state: str) -> None:
    move.state = state
    move.ended_at = await db.scalar(select(func.now()))
    metrics.placement_moves.labels(move.model_id, state).inc()


def _keys(model_id: str) -> dict[str, int]:
    return {"space": LOCK_SPACE, "model": crc32(model_id.encode()) - 2**31}
