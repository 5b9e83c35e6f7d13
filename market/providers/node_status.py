"""A node as its provider sees it: its state, and why it gets no work."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import select

from market.nodes import live_lookup
from market.nodes.tables import RegisteredNode
from market.placement.rebalances import assigned_span
from market.providers.uptime import uptime_percent
from market.resources import Resources
from market.routing.skip_counts import skips_of


class NodeState(StrEnum):
    LOADING = "loading"
    """Registered, and not heard yet."""
    SERVING = "serving"
    COOLING_DOWN = "cooling_down"
    """It failed a generation a moment ago, and gets no new one for a while."""
    UNHEALTHY = "unhealthy"
    """Heard, but off the routes: it says so."""
    SILENT = "silent"
    """Not heard for longer than the platform waits, or it has left."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """
    Attributes:
        moving_to: The span that the node is to load, the end not included.
        latency_ms: Of a step; 0 while nothing was served. ``hop_ms``: of a message there and back.
        earned: FAR.
        skipped: How often the node was not on a route, by reason, in this hour and the one before;
            of the choices that were looked at.
    """

    node_id: str
    wallet: str
    model_id: str
    state: NodeState
    span: tuple[int, int]
    edge: bool
    placeable: bool
    moving_to: tuple[int, int] | None
    last_heartbeat: dt.datetime | None
    current_requests: int
    latency_ms: float
    hop_ms: float
    throughput_tokens_per_sec: float
    tokens_served: int
    earned: Decimal
    uptime_percent: float
    skipped: dict[str, int]


async def node_status(resources: Resources, row: RegisteredNode) -> NodeStatus:
    """What there is to know of a registered node."""
    redis = resources.redis
    live_node = await live_lookup.live_node(redis, row.node_id)
    async with resources.own_reads() as db:
        uptime = await db.scalar(
            select(uptime_percent()).where(RegisteredNode.node_id == row.node_id)
        )
    node = None if live_node is None else live_node.node
    heard = row.last_seen
    if node is not None:
        heard = dt.datetime.fromtimestamp(node.last_seen, dt.UTC)
    return NodeStatus(
        node_id=row.node_id,
        wallet=row.wallet_address,
        model_id=row.model_id,
        state=_state(row, live_node),
        span=(row.start_layer, row.end_layer),
        edge=row.edge,
        placeable=row.placeable,
        moving_to=await assigned_span(redis, row.node_id),
        last_heartbeat=heard,
        current_requests=node.current_requests if node else 0,
        latency_ms=node.latency_ms if node else 0.0,
        hop_ms=node.hop_ms if node else 0.0,
        throughput_tokens_per_sec=node.throughput_tokens_per_sec if node else 0.0,
        tokens_served=row.total_tokens_served,
        earned=row.total_earned_far,
        uptime_percent=float(uptime or 0.0),
        skipped=await skips_of(redis, row.node_id),
    )


def _state(row: RegisteredNode, live_node: live_lookup.LiveNode | None) -> NodeState:
    if live_node is None:
        return NodeState.LOADING if row.last_seen is None else NodeState.SILENT
    if not live_node.node.is_healthy:
        return NodeState.UNHEALTHY
    return NodeState.COOLING_DOWN if live_node.cooling_down else NodeState.SERVING
