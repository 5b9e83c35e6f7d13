"""What a provider sees of himself and of his nodes."""

import datetime as dt
from collections.abc import Sequence

from redis.asyncio import Redis
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.http.services import Services
from api.schemas.base import shown
from api.schemas.nodes import NodeView
from api.schemas.providers import EarningsPoint, ProviderStats
from market import ledger
from market.jobs.tables import Job, NodeContribution, RouteHop
from market.money import ZERO, plain
from market.nodes import live_lookup
from market.nodes.node import Node
from market.nodes.tables import RegisteredNode
from market.providers.node_status import NodeState
from market.routing.skip_counts import skips_of
from market.settings.discovery import DiscoverySettings
from mesh import redis_keys


async def stats(services: Services, wallet: str) -> ProviderStats:
    """A provider at a glance."""
    async with services.sessions() as db:
        earned = await ledger.balance(db, ledger.owed(wallet))
        earned += await ledger.balance(db, ledger.paid(wallet))
        tokens, uptime = (
            await db.execute(
                select(
                    func.coalesce(func.sum(RegisteredNode.total_tokens_served), 0),
                    uptime_percent(services.settings.discovery),
                ).where(RegisteredNode.wallet_address == wallet)
            )
        ).one()
        served = await db.scalar(
            select(func.count(NodeContribution.session_id.distinct())).where(
                NodeContribution.wallet_address == wallet
            )
        )
        failed = await db.scalar(
            select(func.count(RouteHop.session_id.distinct()))
            .join(Job, Job.id == RouteHop.session_id)
            .where(RouteHop.wallet_address == wallet, Job.status == "failed")
        )
        nodes = await _active(services.redis, db, wallet)
    measured = [node.latency_ms + node.hop_ms for node in nodes if node.latency_ms]
    return ProviderStats(
        wallet_address=wallet,
        total_tokens_served=tokens,
        total_earned_far=shown(earned),
        active_nodes=len(nodes),
        uptime_percent=float(uptime or ZERO),
        avg_latency_ms=sum(measured) / len(measured) if measured else 0.0,
        reliability_score=None,
        total_requests_served=served or 0,
        failed_requests=failed or 0,
    )


async def history(db: AsyncSession, wallet: str, days: int) -> list[EarningsPoint]:
    """Earnings by day (UTC) of the last so many days, oldest first; days without are missing."""
    day = func.date(Job.completed_at)
    rows = await db.execute(
        select(day, func.sum(NodeContribution.payment_far))
        .join(Job, Job.id == NodeContribution.session_id)
        .where(
            NodeContribution.wallet_address == wallet,
            Job.completed_at > func.now() - dt.timedelta(days=days),
        )
        .group_by(day)
        .order_by(day)
    )
    return [
        EarningsPoint(date=date, amount=shown(amount), amount_exact=plain(amount))
        for date, amount in rows
    ]


async def view(services: Services, row: RegisteredNode) -> NodeView:
    """A node, its state, and why it gets no work."""
    redis = services.redis
    live_node = await live_lookup.live_node(redis, row.node_id)
    async with services.sessions() as db:
        uptime = await db.scalar(
            select(uptime_of_node()).where(RegisteredNode.node_id == row.node_id)
        )
    start, end = await redis.hmget(redis_keys.assignment(row.node_id), ["start", "end"])  # type: ignore[misc]
    node = None if live_node is None else live_node.node
    heard = row.last_seen
    if node is not None:
        heard = dt.datetime.fromtimestamp(node.last_seen, dt.UTC)
    return NodeView(
        node_id=row.node_id,
        wallet_address=row.wallet_address,
        model_id=row.model_id,
        state=_state(row, live_node),
        layers_served=list(range(row.start_layer, row.end_layer)),
        edge=row.edge,
        placeable=row.placeable,
        moving_to=None if start is None or end is None else (int(start), int(end)),
        last_heartbeat=heard,
        current_requests=node.current_requests if node else 0,
        latency_ms=node.latency_ms if node else 0.0,
        hop_ms=node.hop_ms if node else 0.0,
        throughput_tokens_per_sec=node.throughput_tokens_per_sec if node else 0.0,
        total_tokens_served=row.total_tokens_served,
        total_earned_far=shown(row.total_earned_far),
        total_earned_far_exact=plain(row.total_earned_far),
        uptime_percent=float(uptime or 0.0),
        skipped=await skips_of(redis, row.node_id),
    )


def _state(row: RegisteredNode, live_node: live_lookup.LiveNode | None) -> NodeState:
    if live_node is None:
        return NodeState.LOADING if row.last_seen is None else NodeState.SILENT
    if not live_node.node.is_healthy:
        return NodeState.UNHEALTHY
    return NodeState.COOLING_DOWN if live_node.cooling_down else NodeState.SERVING


async def _active(redis: Redis, db: AsyncSession, wallet: str) -> Sequence[Node]:
    """A wallet's nodes on the routes."""
    models = await db.scalars(
        select(RegisteredNode.model_id).where(RegisteredNode.wallet_address == wallet).distinct()
    )
    return [
        node
        for model_id in models
        for node in await live_lookup.available_nodes(redis, model_id)
        if node.wallet_address == wallet
    ]


def uptime_of_node() -> ColumnElement[float]:
    """Time heard, in percent of the time since registration."""
    age = func.greatest(func.extract("epoch", func.now() - RegisteredNode.registered_at), 1)
    return func.least(100.0 * RegisteredNode.uptime_seconds / age, 100.0)


def uptime_percent(discovery: DiscoverySettings) -> ColumnElement[float]:
    """The mean of that over a wallet's active nodes."""
    # Rows are written now and then; one of a node that died silently stays as it was.
    patience = discovery.row_interval + discovery.health_check_interval + discovery.node_ttl
    heard = RegisteredNode.last_seen > func.now() - dt.timedelta(seconds=patience)
    return func.avg(uptime_of_node()).filter(RegisteredNode.is_active, heard)
