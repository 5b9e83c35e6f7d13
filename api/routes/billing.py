"""What a user has, and has signed for."""

from fastapi import APIRouter

from api import balance
from api.auth import LoggedIn
from api.schemas.base import Balance
from api.services import WithServices

router = APIRouter()


@router.get("/api/billing/balance", tags=["billing"])
async def own_balance(caller: LoggedIn, services: WithServices) -> Balance:
    """Your money: available, held, on its way in and out, and what is left of your spending cap."""
    return await balance.balance(services, caller.wallet)
