"""What a user has, and has signed for."""

from fastapi import APIRouter

from api.http.authentication import LoggedIn
from api.http.services import WithServices
from api.schemas.billing import Balance
from market.ledger import wallet_balance

router = APIRouter()


@router.get("/api/billing/balance", tags=["billing"])
async def own_balance(caller: LoggedIn, services: WithServices) -> Balance:
    """Your money: available, held, on its way in and out, and what is left of your spending cap."""
    return await wallet_balance.balance(services, caller.wallet)
