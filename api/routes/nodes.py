"""Nodes: registration, heartbeats, earnings (§7.2)."""

import datetime as dt

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import func, select

from api.http.authentication import Bearer, CallingRegistration
from api.http.rate_limits import address_of, limit
from api.http.services import WithServices
from api.schemas.base import WalletAddress, shown
from api.schemas.nodes import HeartbeatBody, RegistrationBody
from api.schemas.providers import Earnings, EarningsOfDay
from market import ledger
from market.errors import Forbidden
from market.jobs.tables import Job, NodeContribution
from market.membership import heartbeats, registration
from market.membership.registration import Registered
from market.money import ZERO, plain
from market.nodes import live_lookup
from market.nodes.tables import RegisteredNode
from market.placement import assignments
from market.providers import earnings as providers_earnings

router = APIRouter(prefix="/api/nodes", tags=["nodes"])

HISTORY = dt.timedelta(days=90)
"""How far back earnings are told by day."""


class Acknowledged(BaseModel):
    status: str
    should_rebalance: bool
    """Load the span that follows, and serve on meanwhile."""
    start_layer: int | None = None
    end_layer: int | None = None
    """The span to serve, the end not included; with layer 0 comes the edge."""


@router.post("/register-distributed", response_model_exclude_none=True)
async def register(
    body: RegistrationBody, request: Request, bearer: Bearer, services: WithServices
) -> Registered:
    """Register a node for a span of a model. The wallet signs span, edge and a fresh nonce, or has
    let the machine in before.

    The node is on the routes from its first healthy heartbeat on. Who registers with the same
    wallet, `device_id` and `gpu_index` again is the same node; its earlier process is off the
    routes.
    """
    address = address_of(request, services)
    await limit(services, services.settings.limits.registrations_per_ip, "register", address)
    return await registration.register(services, body, bearer, address)


@router.post("/heartbeat")
async def heartbeat(
    body: HeartbeatBody, caller: CallingRegistration, services: WithServices
) -> Acknowledged:
    """Keep a node on the routes, or take it off them with `is_healthy: false`."""
    if body.node_id != caller.node_id:
        raise Forbidden("A node may only speak for itself.")
    await limit(services, services.settings.limits.heartbeats_per_node, "heartbeat", caller.node_id)
    await heartbeats.take(services, caller, body)
    orders = await assignments.answer(services, caller.node_id, body)
    start, end = orders.span or (None, None)
    return Acknowledged(
        status="ok", should_rebalance=orders.should_rebalance, start_layer=start, end_layer=end
    )


@router.get("/earnings/{wallet_address}")
async def earnings(wallet_address: WalletAddress, services: WithServices) -> Earnings:
    """What a provider has earned: settled and pending."""
    wallet = wallet_address
    async with services.sessions() as db:
        owed = await ledger.balance(db, ledger.owed(wallet))
        paid = await ledger.balance(db, ledger.paid(wallet))
        tokens, uptime = (
            await db.execute(
                select(
                    func.coalesce(func.sum(RegisteredNode.total_tokens_served), 0),
                    providers_earnings.uptime_percent(services.settings.discovery),
                ).where(RegisteredNode.wallet_address == wallet)
            )
        ).one()
        models = await db.scalars(
            select(RegisteredNode.model_id)
            .where(RegisteredNode.wallet_address == wallet)
            .distinct()
        )
        day = func.date(Job.completed_at)
        history = await db.execute(
            select(day, func.sum(NodeContribution.payment_far))
            .join(Job, Job.id == NodeContribution.session_id)
            .where(
                NodeContribution.wallet_address == wallet,
                Job.completed_at > func.now() - HISTORY,
            )
            .group_by(day)
            .order_by(day)
        )
        days = [EarningsOfDay(date=date, amount_far=shown(amount)) for date, amount in history]
    active = 0
    for model_id in models:
        nodes = await live_lookup.available_nodes(services.redis, model_id)
        active += sum(node.wallet_address == wallet for node in nodes)
    return Earnings(
        wallet_address=wallet,
        total_earned_far=shown(owed + paid),
        total_earned_far_exact=plain(owed + paid),
        total_tokens_served=tokens,
        active_nodes=active,
        avg_uptime_percent=float(uptime or ZERO),
        pending_payout_far=shown(owed),
        pending_payout_far_exact=plain(owed),
        earnings_history=days,
    )
