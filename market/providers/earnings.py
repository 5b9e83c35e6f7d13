"""What a provider has earned: in total, by day, and for what work."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from redis.asyncio import Redis
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger
from market.jobs.tables import Job, NodeContribution, RouteHop
from market.nodes import live_lookup
from market.nodes.node import Node
from market.nodes.tables import RegisteredNode
from market.providers.uptime import mean_uptime_percent
from market.resources import Resources
from market.settings.discovery import DiscoverySettings

HISTORY_DAYS = 90
"""How far back a provider's earnings are told by day, where he does not say."""

MAX_HISTORY_DAYS = 365


@dataclass(frozen=True, slots=True)
class EarningsOfDay:
    """FAR that a provider earned with the jobs that ended on a day (UTC)."""

    date: dt.date
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Totals:
    """All that a provider's nodes have done. ``owed`` and ``paid``: FAR."""

    owed: Decimal
    paid: Decimal
    tokens_served: int
    uptime_percent: float

    @property
    def earned(self) -> Decimal:
        """FAR, paid or not."""
        return self.owed + self.paid


@dataclass(frozen=True, slots=True)
class Earnings:
    """What a provider has earned, and with how many nodes he earns now."""

    wallet: str
    totals: Totals
    active_nodes: int
    history: list[EarningsOfDay]


@dataclass(frozen=True, slots=True)
class ProviderStats:
    """A provider at a glance. ``requests_failed``: after his nodes had been given a part, whoever
    was to blame. ``latency_ms``: of a step and its hop, over his nodes that have served."""

    wallet: str
    totals: Totals
    active_nodes: int
    latency_ms: float
    requests_served: int
    requests_failed: int


async def earnings_of(resources: Resources, wallet: str) -> Earnings:
    """A provider's earnings, and their last :data:`HISTORY_DAYS` days."""
    async with resources.reads() as db:
        totals = await _totals(db, wallet, resources.settings.discovery)
        days = await _history(db, wallet, HISTORY_DAYS)
        nodes = await _nodes_on_routes(resources.redis, db, wallet)
    return Earnings(wallet, totals, len(nodes), days)


async def stats_of(resources: Resources, wallet: str) -> ProviderStats:
    """A provider at a glance."""
    async with resources.reads() as db:
        totals = await _totals(db, wallet, resources.settings.discovery)
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
        nodes = await _nodes_on_routes(resources.redis, db, wallet)
    measured = [node.latency_ms + node.hop_ms for node in nodes if node.latency_ms]
    return ProviderStats(
        wallet=wallet,
        totals=totals,
        active_nodes=len(nodes),
        latency_ms=sum(measured) / len(measured) if measured else 0.0,
        requests_served=served or 0,
        requests_failed=failed or 0,
    )


async def history_of(resources: Resources, wallet: str) -> list[EarningsOfDay]:
    """Earnings by day (UTC) of the last :data:`MAX_HISTORY_DAYS` days, oldest first; days without
    are missing."""
    async with resources.reads() as db:
        return await _history(db, wallet, MAX_HISTORY_DAYS)


async def _history(db: AsyncSession, wallet: str, days: int) -> list[EarningsOfDay]:
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
    return [EarningsOfDay(date, amount) for date, amount in rows]


async def _totals(db: AsyncSession, wallet: str, discovery: DiscoverySettings) -> Totals:
    owed = await ledger.balance(db, ledger.owed(wallet))
    paid = await ledger.balance(db, ledger.paid(wallet))
    tokens, uptime = (
        await db.execute(
            select(
                func.coalesce(func.sum(RegisteredNode.total_tokens_served), 0),
                mean_uptime_percent(discovery),
            ).where(RegisteredNode.wallet_address == wallet)
        )
    ).one()
    return Totals(owed, paid, tokens, float(uptime or 0))


async def _nodes_on_routes(redis: Redis, db: AsyncSession, wallet: str) -> Sequence[Node]:
    models = await db.scalars(
        select(RegisteredNode.model_id).where(RegisteredNode.wallet_address == wallet).distinct()
    )
    return [
        node
        for model_id in models
        for node in await live_lookup.available_nodes(redis, model_id)
        if node.wallet_address == wallet
    ]
