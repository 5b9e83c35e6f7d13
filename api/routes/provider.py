"""For providers: their earnings and nodes at a glance (§4.2, §8.3)."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.http import rate_limits
from api.http.authentication import Bearer, BillingCaller, authenticate
from api.http.csv_export import CSV_RESPONSE, csv_response
from api.http.services import Services, WithServices
from api.http.time_range import From, To, time_range
from api.schemas.base import WalletAddress
from api.schemas.providers import EarningsPoint, ProviderStats
from market.identity.principal import Scope
from market.providers.earnings import history_of, stats_of
from market.receipts import statements

router = APIRouter(prefix="/api/provider", tags=["nodes"])

Wallet = Annotated[
    WalletAddress | None, Query(description="Whose; the wallet that is logged in if not given.")
]
Days = Annotated[int, Query(ge=1, le=365, description="How far back.")]


@router.get("/stats")
async def stats(
    bearer: Bearer, services: WithServices, wallet_address: Wallet = None
) -> ProviderStats:
    """A provider at a glance. As his earnings, everybody may see it."""
    wallet = wallet_address or _own_wallet(bearer, services)
    return ProviderStats.of(await stats_of(services, wallet))


@router.get("/earnings/history")
async def history(
    bearer: Bearer, services: WithServices, wallet_address: Wallet = None, days: Days = 90
) -> list[EarningsPoint]:
    """What a provider earned, by day, as a list that a chart takes."""
    wallet = wallet_address or _own_wallet(bearer, services)
    async with services.sessions() as db:
        return [EarningsPoint.of(day) for day in await history_of(db, wallet, days)]


@router.get("/earnings.csv", response_class=Response, responses=CSV_RESPONSE)
async def earnings(
    caller: BillingCaller, services: WithServices, since: From = None, to: To = None
) -> Response:
    """What your wallet's nodes earned with jobs that ended in a span of time, as CSV."""
    await rate_limits.TABLES.count(services, caller.wallet)
    pages = statements.provider_statement(services.sessions, caller.wallet, *time_range(since, to))
    return await csv_response("earnings.csv", statements.PROVIDER_COLUMNS, pages)


def _own_wallet(bearer: Bearer, services: Services) -> str:
    caller = authenticate(bearer, services)
    caller.require(Scope.BILLING)
    return caller.wallet
