"""For providers: their earnings and nodes at a glance (§4.2, §8.3), and why a node gets no work."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.http.authentication import Bearer, may_see_node, wallet_of_user
from api.http.services import Services, WithServices
from api.schemas.base import WalletAddress
from api.schemas.nodes import NodeView
from api.schemas.providers import EarningsPoint, ProviderStats
from market.nodes.errors import NodeNotFound
from market.nodes.tables import RegisteredNode
from market.providers import earnings

router = APIRouter(tags=["nodes"])

Wallet = Annotated[
    WalletAddress | None, Query(description="Whose; the wallet that is logged in if not given.")
]
Days = Annotated[int, Query(ge=1, le=365, description="How far back.")]


@router.get("/api/provider/stats")
async def stats(
    bearer: Bearer, services: WithServices, wallet_address: Wallet = None
) -> ProviderStats:
    """A provider at a glance. As his earnings, everybody may see it."""
    return await earnings.stats(services, _wallet(wallet_address, bearer, services))


@router.get("/api/provider/earnings/history")
async def history(
    bearer: Bearer, services: WithServices, wallet_address: Wallet = None, days: Days = 90
) -> list[EarningsPoint]:
    """What a provider earned, by day, as a list that a chart takes."""
    wallet = _wallet(wallet_address, bearer, services)
    async with services.sessions() as db:
        return await earnings.history(db, wallet, days)


@router.get("/api/nodes/{node_id}")
async def node(node_id: str, bearer: Bearer, services: WithServices) -> NodeView:
    """A node's state, and why it gets no work: for the node itself, its wallet, and the wallet's
    machines. To others it is not there."""
    async with services.sessions() as db:
        row = await db.get(RegisteredNode, node_id)
    wallet = "" if row is None else row.wallet_address
    if not await may_see_node(bearer, services, node_id, wallet) or row is None:
        raise NodeNotFound(f"You have no node {node_id} here.")
    return await earnings.view(services, row)


def _wallet(given: str | None, bearer: Bearer, services: Services) -> str:
    return wallet_of_user(bearer, services) if given is None else given
