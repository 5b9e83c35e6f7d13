"""Names of accounts, and their balances."""

from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from mesh.db import LedgerAccount
from mesh.money import ZERO

PLATFORM = "platform"
CHAIN = "chain"


class Account(NamedTuple):
    owner: str
    kind: str


def available(wallet: str) -> Account:
    """What a user may spend."""
    return Account(wallet, "available")


def held(wallet: str) -> Account:
    """What a user's running generations may cost at most."""
    return Account(wallet, "held")


def owed(owner: str) -> Account:
    """What a provider, or the platform, has earned and not been paid on-chain."""
    return Account(owner, "owed")


def paid(owner: str) -> Account:
    """What a provider, or the platform, was paid on-chain, ever."""
    return Account(owner, "paid")


def clearing() -> Account:
    """The escrow contract seen from here: minus everything that others have."""
    return Account(CHAIN, "clearing")


async def balance(db: AsyncSession, account: Account) -> Decimal:
    """The account's balance in FAR; zero for one that was never posted to."""
    found = await db.scalar(
        select(LedgerAccount.balance).where(
            LedgerAccount.owner == account.owner, LedgerAccount.kind == account.kind
        )
    )
    return ZERO if found is None else found
