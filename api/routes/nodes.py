"""Nodes: registration, heartbeats, earnings (§7.2), and why a node gets no work."""

from fastapi import APIRouter, Request, Response

from api.http import rate_limits
from api.http.authentication import (
    BEARER,
    OPTIONAL,
    CallingNode,
    authenticate_current,
    token_of,
)
from api.http.public_reads import WithReads
from api.http.rate_limits import address_of
from api.http.services import WithServices
from api.schemas.base import PathId, WalletAddress
from api.schemas.nodes import (
    HeartbeatAnswer,
    HeartbeatBody,
    NodeView,
    RegistrationAnswer,
    RegistrationBody,
)
from api.schemas.providers import Earnings
from market.errors import Forbidden
from market.identity.principal import Principal, Scope
from market.identity.wallet_signature import WalletSignature
from market.membership import heartbeats, registration
from market.nodes.errors import NodeNotFound
from market.nodes.tables import RegisteredNode
from market.placement.assignments import assignment_for
from market.providers.earnings import earnings_of
from market.providers.node_status import node_status

router = APIRouter(prefix="/api/nodes", tags=["nodes"])
status_router = APIRouter(prefix="/api/nodes", tags=["nodes"])
"""The gateway's alone."""


@router.post(
    "/register-distributed",
    response_model_exclude_none=True,
    dependencies=[BEARER],
    openapi_extra=OPTIONAL,
)
async def register(
    body: RegistrationBody, request: Request, services: WithServices
) -> RegistrationAnswer:
    """Register a node for a span of a model. The wallet signs span, edge and a fresh nonce, or has
    let the machine in before.

    The node is on the routes from its first healthy heartbeat on. Who registers with the same
    wallet, `device_id` and `gpu_index` again is the same node; its earlier process is off the
    routes.
    """
    await rate_limits.REGISTRATIONS.count_address(services, request)
    reply = await registration.register(
        services,
        body.registration(services.catalog.get(body.model_id).layers),
        proof=await _proof(body, request),
        name=body.node_id,
        location=services.geoip.find(address_of(request, services)),
    )
    return RegistrationAnswer.of(reply, services.settings.public_url)


@router.post("/heartbeat")
async def heartbeat(
    body: HeartbeatBody, caller: CallingNode, services: WithServices
) -> HeartbeatAnswer:
    """Keep a node on the routes, or take it off them with `is_healthy: false`."""
    if body.node_id != caller.node_id:
        raise Forbidden("A node may only speak for itself.")
    await rate_limits.HEARTBEATS.count(services, caller.node_id)
    figures = body.heartbeat()
    await heartbeats.accept(services, caller, figures)
    return HeartbeatAnswer.of(await assignment_for(services, caller.node_id, figures))


@router.get(
    "/earnings/{wallet_address}",
    response_model=Earnings,
    dependencies=[rate_limits.READS.by_address()],
)
async def earnings(
    wallet_address: WalletAddress, services: WithServices, reads: WithReads
) -> Response:
    """What a provider has earned: settled and pending."""

    async def read() -> Earnings:
        return Earnings.of(await earnings_of(services, wallet_address))

    return await reads.answer(("earnings", wallet_address), read)


@status_router.get("/{node_id}", dependencies=[BEARER])
async def node(node_id: PathId, request: Request, services: WithServices) -> NodeView:
    """A node's state, and why it gets no work: for the node itself, its wallet, and the wallet's
    machines. To others it is not there."""
    caller = await authenticate_current(request, Scope.NODES)
    async with services.own_reads() as db:
        row = await db.get(RegisteredNode, node_id)
    if row is None or not caller.may_see(node_id, row.wallet_address):
        raise NodeNotFound(f"You have no node {node_id} here.")
    return NodeView.of(await node_status(services, row))


async def _proof(body: RegistrationBody, request: Request) -> Principal | WalletSignature | None:
    """The wallet's signature, or the machine that it let in."""
    if body.signature is None and token_of(request) is not None:
        return await authenticate_current(request, Scope.REGISTER)
    if body.signature is None or body.nonce is None or body.expires_at is None:
        return None
    return WalletSignature(body.nonce, body.expires_at, body.signature)
