"""Nodes: registration, heartbeats, earnings (§7.2)."""

import datetime as dt
import secrets

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import ColumnElement, case, func, or_, select, update

from api.auth import Bearer, CallingNode, issue_token, machine_of, use_nonce
from api.limits import address_of, limit
from api.services import Services, WithServices
from mesh import ledger, proof, registry
from mesh.db import InferenceSession, Machine, NodeContribution, NodeRegistry
from mesh.errors import Forbidden, InvalidRequest, NodeNotFound, SignatureMismatch
from mesh.money import ZERO, plain
from mesh.schemas import (
    Earnings,
    EarningsOfDay,
    NodeHealth,
    NodeRegistration,
    WalletAddress,
    shown,
)

router = APIRouter(prefix="/api/nodes", tags=["nodes"])

HISTORY = dt.timedelta(days=90)
"""How far back earnings are told by day."""


class Registered(BaseModel):
    node_id: str
    status: str
    discovery_url: str
    heartbeat_interval_sec: float
    node_token: str
    """Bearer token of this node, for heartbeats; worth nothing elsewhere."""
    layers_served: list[int]


class Acknowledged(BaseModel):
    status: str
    should_rebalance: bool


@router.post("/register-distributed")
async def register(
    body: NodeRegistration, request: Request, bearer: Bearer, services: WithServices
) -> Registered:
    """Register a node for a span of a model. The wallet signs span, edge and a fresh nonce, or has
    let the machine in before.

    The node is on the routes from its first healthy heartbeat on.
    """
    await limit(
        services,
        services.settings.limits.registrations_per_ip,
        "register",
        address_of(request, services),
    )
    model = services.catalog.get(body.model_id)
    end = model.layers if body.end_layer is None else body.end_layer
    if not body.start_layer < end <= model.layers:
        raise InvalidRequest(
            f"Layers {body.start_layer} to {end} are not within the model's 0 to {model.layers}.",
            code="end_layer_out_of_range",
        )
    machine_id = await _prove_wallet(body, end, bearer, services)
    node_id = f"node_{secrets.token_hex(8)}"
    async with services.sessions.begin() as db:
        db.add(
            NodeRegistry(
                node_id=node_id,
                wallet_address=body.wallet_address,
                model_id=body.model_id,
                gpu_model=body.gpu_model,
                vram_gb=body.vram_gb,
                location=body.location,
                public_addr=body.public_addr,
                start_layer=body.start_layer,
                end_layer=end,
                edge=body.edge,
                machine_id=machine_id,
            )
        )
    return Registered(
        node_id=node_id,
        status="registered",
        discovery_url=services.settings.public_url,
        heartbeat_interval_sec=services.settings.discovery.health_check_interval,
        node_token=issue_token(services, node_id, "node"),
        layers_served=list(range(body.start_layer, end)),
    )


@router.post("/heartbeat")
async def heartbeat(body: NodeHealth, node_id: CallingNode, services: WithServices) -> Acknowledged:
    """Keep a node on the routes, or take it off them with `is_healthy: false`."""
    if body.node_id != node_id:
        raise Forbidden("A node may only speak for itself.")
    await limit(services, services.settings.limits.heartbeats_per_node, "heartbeat", node_id)
    row = await _touch(services, body)
    node = registry.Node(
        node_id=node_id,
        wallet_address=row.wallet_address,
        model_id=row.model_id,
        start_layer=row.start_layer,
        end_layer=row.end_layer,
        edge=row.edge,
        trusted=row.wallet_address in _trusted(services),
        gpu_model=row.gpu_model or "",
        vram_gb=row.vram_gb or 0,
        location=row.location or "",
        public_addr=row.public_addr or "",
        is_healthy=body.is_healthy,
        latency_ms=body.latency_ms,
        throughput_tokens_per_sec=body.throughput_tokens_per_sec,
        current_requests=body.current_requests,
        kv_positions=body.kv_positions,
        last_seen=dt.datetime.now(dt.UTC).timestamp(),
    )
    if body.is_healthy:
        await registry.announce(services.redis, node, ttl=services.settings.discovery.node_ttl)
    else:
        await registry.forget(services.redis, node_id, row.model_id)
    return Acknowledged(status="ok", should_rebalance=False)


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
                    func.coalesce(func.sum(NodeRegistry.total_tokens_served), 0), _uptime_percent()
                ).where(NodeRegistry.wallet_address == wallet)
            )
        ).one()
        models = await db.scalars(
            select(NodeRegistry.model_id).where(NodeRegistry.wallet_address == wallet).distinct()
        )
        day = func.date(InferenceSession.completed_at)
        history = await db.execute(
            select(day, func.sum(NodeContribution.payment_far))
            .join(InferenceSession, InferenceSession.id == NodeContribution.session_id)
            .where(
                NodeContribution.wallet_address == wallet,
                InferenceSession.completed_at > func.now() - HISTORY,
            )
            .group_by(day)
            .order_by(day)
        )
        days = [EarningsOfDay(date=date, amount_far=shown(amount)) for date, amount in history]
    active = 0
    for model_id in models:
        nodes = await registry.active(services.redis, model_id)
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


async def _prove_wallet(
    body: NodeRegistration, end: int, bearer: Bearer, services: Services
) -> str | None:
    """The machine that speaks for the wallet; none where the wallet itself has signed.

    Raises:
        SignatureMismatch: neither the wallet's signature nor a token of its machine.
        NonceUnknown: the signature was used before, or is too old.
    """
    if body.signature is None and bearer is not None:
        machine = await machine_of(bearer, services)
        if machine.wallet != body.wallet_address:
            raise SignatureMismatch(
                f"This machine was let in by {machine.wallet}: register for that."
            )
        return machine.machine_id
    if body.signature is None or body.nonce is None:
        raise SignatureMismatch("Sign the registration, with a nonce from /api/auth/nonce.")
    message = proof.registration_message(
        wallet_address=body.wallet_address,
        model_id=body.model_id,
        start_layer=body.start_layer,
        end_layer=end,
        edge=body.edge,
        nonce=body.nonce,
    )
    if not proof.signed_by(message, body.signature, body.wallet_address):
        raise SignatureMismatch("The signature is not this wallet's over this registration.")
    await use_nonce(services.redis, body.nonce)
    return None


async def _touch(services: Services, body: NodeHealth) -> NodeRegistry:
    """Note the heartbeat, and the time since the last one as uptime if that was recent."""
    now = func.now()
    silence = func.extract("epoch", now - NodeRegistry.last_seen)
    up = case((silence <= services.settings.discovery.node_ttl, silence), else_=0.0)
    async with services.sessions.begin() as db:
        row: NodeRegistry | None = await db.scalar(
            update(NodeRegistry)
            .where(NodeRegistry.node_id == body.node_id, _may_serve())
            .values(
                last_seen=now,
                is_active=body.is_healthy,
                uptime_seconds=NodeRegistry.uptime_seconds + func.coalesce(up, 0.0),
            )
            .returning(NodeRegistry)
        )
    if row is None:
        raise NodeNotFound(f"Node {body.node_id} is not registered here. Register again.")
    return row


def _may_serve() -> ColumnElement[bool]:
    """The wallet itself has signed, or has not taken back the token of the machine."""
    revoked = select(Machine.machine_id).where(Machine.revoked_at.is_not(None))
    return or_(NodeRegistry.machine_id.is_(None), NodeRegistry.machine_id.not_in(revoked))


def _uptime_percent() -> ColumnElement[float]:
    """Mean over a wallet's active nodes of time heard, of time since registration."""
    age = func.greatest(func.extract("epoch", func.now() - NodeRegistry.registered_at), 1)
    share = func.least(100.0 * NodeRegistry.uptime_seconds / age, 100.0)
    return func.avg(share).filter(NodeRegistry.is_active)


def _trusted(services: Services) -> set[str]:
    return {wallet.lower() for wallet in services.settings.discovery.trusted_wallets}
