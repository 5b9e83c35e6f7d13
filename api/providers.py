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
from market.jobs.tables import InferenceSession, NodeContribution, RouteHop
from market.money import ZERO, plain
from market.nodes import live_lookup
from market.nodes.node import Node
from market.nodes.tables import NodeRegistry
from market.providers.node_status import NodeState
from market.routing.skip_counts import skipped
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
                    func.coalesce(func.sum(NodeRegistry.total_tokens_served), 0),
                    uptime_percent(services.settings.discovery),
                ).where(NodeRegistry.wallet_address == wallet)
            )
        ).one()
        served = await db.scalar(
            select(func.count(NodeContribution.session_id.distinct())).where(
                NodeContribution.wallet_address == wallet
            )
        )
        failed = await db.scalar(
            select(func.count(RouteHop.session_id.distinct()))
            .join(InferenceSession, InferenceSession.id == RouteHop.session_id)
            .where(RouteHop.wallet_address == wallet, InferenceSession.status == "failed")
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
    day = func.date(InferenceSession.completed_at)
    rows = await db.execute(
        select(day, func.sum(NodeContribution.payment_far))
        .join(InferenceSession, InferenceSession.id == NodeContribution.session_id)
        .where(
            NodeContribution.wallet_address == wallet,
            InferenceSession.completed_at > func.now() - dt.timedelta(days=days),
        )
        .group_by(day)
        .order_by(day)
    )
    return [
        EarningsPoint(date=date, amount=shown(amount), amount_exact=plain(amount))
        for date, amount in rows
    ]


async def view(services: Services, row: NodeRegistry) -> NodeView:
    """A node, its state, and why it gets no work."""
    redis = services.redis
    sighting = await live_lookup.sight(redis, row.node_id)
    async with services.sessions() as db:
        uptime = await db.scalar(
            select(uptime_of_node()).where(NodeRegistry.node_id == row.node_id)
        )
    start, end = await redis.hmget(redis_keys.orders(row.node_id), ["start", "end"])  # type: ignore[misc]
    node = None if sighting is None else sighting.node
    heard = row.last_seen
    if node is not None:
        heard = dt.datetime.fromtimestamp(node.last_seen, dt.UTC)
    return NodeView(
        node_id=row.node_id,
        wallet_address=row.wallet_address,
        model_id=row.model_id,
        state=_state(row, sighting),
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
        skipped=await skipped(redis, row.node_id),
    )


def _state(row: NodeRegistry, sighting: live_lookup.Sighting | None) -> NodeState:
    if sighting is None:
        return NodeState.LOADING if row.last_seen is None else NodeState.SILENT
    if not sighting.node.is_healthy:
        return NodeState.UNHEALTHY
    return NodeState.COOLING_DOWN if sighting.cools else NodeState.SERVING


async def _active(redis: Redis, db: AsyncSession, wallet: str) -> Sequence[Node]:
    """A wallet's nodes on the routes."""
    models = await db.scalars(
        select(NodeRegistry.model_id).where(NodeRegistry.wallet_address == wallet).distinct()
    )
    return [
        node
        for model_id in models
        for node in await live_lookup.active(redis, model_id)
        if node.wallet_address == wallet
    ]


def uptime_of_node() -> ColumnElement[float]:
    """Time heard, in percent of the time since registration."""
    age = func.greatest(func.extract("epoch", func.now() - NodeRegistry.registered_at), 1)
    return func.least(100.0 * NodeRegistry.uptime_seconds / age, 100.0)


def uptime_percent(discovery: DiscoverySettings) -> ColumnElement[float]:
    """The mean of that over a wallet's active nodes."""
    # Rows are written now and then; one of a node that died silently stays as it was.
    patience = discovery.row_interval + discovery.health_check_interval + discovery.node_ttl
    heard = NodeRegistry.last_seen > func.now() - dt.timedelta(seconds=patience)
    return func.avg(uptime_of_node()).filter(NodeRegistry.is_active, heard)
