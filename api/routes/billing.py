"""What a user has, has signed for, and has spent."""

from fastapi import APIRouter, Response

from api.http import rate_limits
from api.http.authentication import BillingCaller
from api.http.csv_export import CSV_RESPONSE, csv_response
from api.http.services import WithServices
from api.http.time_range import From, To, time_range
from api.schemas.billing import Balance
from market.ledger.wallet_balance import balance_of
from market.receipts import statements

router = APIRouter(prefix="/api/billing", tags=["billing"])


@router.get("/balance")
async def own_balance(caller: BillingCaller, services: WithServices) -> Balance:
    """Your money: available, held, on its way in and out, and what is left of your spending cap."""
    contract = services.settings.payments.escrow_contract
    return Balance.of(await balance_of(services.own_reads, caller.wallet, contract))


@router.get("/usage.csv", response_class=Response, responses=CSV_RESPONSE)
async def usage(
    caller: BillingCaller, services: WithServices, since: From = None, to: To = None
) -> Response:
    """Your jobs that ended in a span of time, as CSV, the oldest first."""
    await rate_limits.TABLES.count(services, caller.wallet)
    pages = statements.user_statement(services.own_reads, caller.wallet, *time_range(since, to))
    return await csv_response("usage.csv", statements.USER_COLUMNS, pages)
