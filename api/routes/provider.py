"""For providers: their earnings and nodes at a glance (§4.2, §8.3)."""

import datetime as dt
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.http import rate_limits
from api.http.authentication import BEARER, OPTIONAL, BillingCaller, authenticate
from api.http.csv_export import CSV_RESPONSE, csv_response
from api.http.public_reads import WithReads, encoded, json_response
from api.http.services import WithServices
from api.http.time_range import From, To, time_range
from api.schemas.base import WalletAddress
from api.schemas.providers import EarningsPoint, ProviderStats
from market.identity.principal import Scope
from market.providers.earnings import HISTORY_DAYS, MAX_HISTORY_DAYS, history_of, stats_of
from market.receipts import statements

router = APIRouter(prefix="/api/provider", tags=["nodes"])

Wallet = Annotated[
    WalletAddress | None, Query(description="Whose; the wallet that is logged in if not given.")
]
Days = Annotated[int, Query(ge=1, le=MAX_HISTORY_DAYS, description="How far back.")]


@router.get(
    "/stats",
    response_model=ProviderStats,
    dependencies=[rate_limits.READS.by_address(), BEARER],
    openapi_extra=OPTIONAL,
)
async def stats(
    request: Request, services: WithServices, reads: WithReads, wallet_address: Wallet = None
) -> Response:
    """A provider at a glance. As his earnings, everybody may see it."""
    wallet = wallet_address or await _own_wallet(request)

    async def read() -> ProviderStats:
        return ProviderStats.of(await stats_of(services, wallet))

    return await reads.answer(("stats", wallet), read)


@router.get(
    "/earnings/history",
    response_model=list[EarningsPoint],
    dependencies=[rate_limits.READS.by_address(), BEARER],
    openapi_extra=OPTIONAL,
)
async def history(
    request: Request,
    services: WithServices,
    reads: WithReads,
    wallet_address: Wallet = None,
    days: Days = HISTORY_DAYS,
) -> Response:
    """What a provider earned, by day, as a list that a chart takes."""
    wallet = wallet_address or await _own_wallet(request)

    async def read() -> list[tuple[dt.date, bytes]]:
        found = await history_of(services, wallet)
        return [(day.date, encoded(EarningsPoint.of(day))) for day in found]

    # One read a wallet, however far back its callers look.
    all_days = await reads.get(("history", wallet), read)
    first = (dt.datetime.now(dt.UTC) - dt.timedelta(days=days)).date()
    points = [point for date, point in all_days if date >= first]
    return json_response(b"[" + b",".join(points) + b"]")


@router.get("/earnings.csv", response_class=Response, responses=CSV_RESPONSE)
async def earnings(
    caller: BillingCaller, services: WithServices, since: From = None, to: To = None
) -> Response:
    """What your wallet's nodes earned with jobs that ended in a span of time, as CSV."""
    await rate_limits.TABLES.count(services, caller.wallet)
    pages = statements.provider_statement(services.own_reads, caller.wallet, *time_range(since, to))
    return await csv_response("earnings.csv", statements.PROVIDER_COLUMNS, pages)


async def _own_wallet(request: Request) -> str:
    caller = await authenticate(request)
    caller.require(Scope.BILLING)
    return caller.wallet
