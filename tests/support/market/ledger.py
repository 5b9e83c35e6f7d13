"""Balances and spending caps, as the tests of the ledger read and set them."""

from decimal import Decimal

from sqlalchemy import select

from market import ledger
from market.db import Sessions
from market.ledger.tables import SpendingCap
from tests.support.factories import USER, fund

PROVIDER = "0x" + "bb" * 20


async def deposit(sessions: Sessions, amount: str, wallet: str = USER) -> None:
    """A deposit, under an ample spending cap."""
    async with sessions.begin() as db:
        await fund(db, wallet=wallet, amount=amount)


async def balances(sessions: Sessions) -> dict[tuple[str, str], Decimal]:
    async with sessions() as db:
        rows = await db.execute(select(ledger.BALANCES))
        return {(owner, kind): balance for owner, kind, balance in rows}


async def cap(sessions: Sessions, wallet: str = USER) -> tuple[Decimal, Decimal]:
    """The most that may be committed, and what is."""
    async with sessions() as db:
        row = await db.get_one(SpendingCap, wallet)
        return row.maximum, row.committed
