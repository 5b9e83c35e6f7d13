"""For providers: their earnings and nodes at a glance (§4.2, §8.3)."""

from functools import partial
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


@router.get("/stats", dependencies=[rate_limits.READS.by_address()])
async def stats(
    bearer: Bearer, services: WithServices, wallet_address: Wallet = None
) -> ProviderStats:
    """A provider at a glance. As his earnings, everybody may see it."""
    wallet = wallet_address or _own_wallet(bearer, services)
    stats = await services.read_cache.get(("stats", wallet), partial(stats_of, services, wallet))
    return ProviderStats.of(stats)


@router.get("/earnings/history", dependencies=[rate_limits.READS.by_address()])
async def history(
    bearer: Bearer, services: WithServices, wallet_address: Wallet = None, days: Days = 90
) -> list[EarningsPoint]:
    """What a provider earned, by day, as a list that a chart takes."""
    wallet = wallet_address or _own_wallet(bearer, services)
    found = await services.read_cache.get(
        ("history", wallet, days), partial(history_of, services, wallet, days)
    )
    return [EarningsPoint.of(day) for day in found]


@router.get("/earnings.csv", response_class=Response, responses=CSV_RESPONSE)
async def earnings(
    caller: BillingCaller, services: WithServices, since: From = None, to: To = None
) -> Response:
    """What your wallet's nodes earned with jobs that ended in a span of time, as CSV."""
    await rate_limits.TABLES.count(services, caller.wallet)
    pages = statements.provider_statement(services.reads, caller.wallet, *time_range(since, to))
    return await csv_response("earnings.csv", statements.PROVIDER_COLUMNS, pages)


def _own_wallet(bearer: Bearer, services: Services) -> str:
    caller = authenticate(bearer, services)
    caller.require(Scope.BILLING)
    return caller.wallet
