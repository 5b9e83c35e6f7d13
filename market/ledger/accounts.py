"""Names of accounts, and their balances now and at any time before."""

import datetime as dt
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import String, column, func, select, table
from sqlalchemy.ext.asyncio import AsyncSession

from market.db import AMOUNT, WALLET
from market.ledger.tables import LedgerAccount, LedgerEntry
from market.money import ZERO

PLATFORM = "platform"
CHAIN = "chain"

BALANCES = table(
    "ledger_balances",
    column("owner", WALLET),
    column("kind", String),
    column("balance", AMOUNT),
)
"""The view that shows every account's balance as one figure, in FAR."""


class Account(NamedTuple):
    owner: str
    kind: str


def available(wallet: str) -> Account:
    """What a user may spend."""
    return Account(wallet, "available")


def held(wallet: str) -> Account:
    """What a user's running generations may cost at most."""
    return Account(wallet, "held")


def withdrawing(wallet: str) -> Account:
    """What a user has asked the contract for, and still has there."""
    return Account(wallet, "withdrawing")


def owed(owner: str) -> Account:
    """What a provider, or the platform, has earned and not been paid on-chain."""
    return Account(owner, "owed")


def paid(owner: str) -> Account:
    """What a provider, or the platform, was paid on-chain, ever."""
    return Account(owner, "paid")


def clearing() -> Account:
    """The escrow contract as the ledger sees it: minus the sum of all other accounts."""
    return Account(CHAIN, "clearing")


def shortfall(wallet: str) -> Account:
    """Minus what the contract paid out, or a reorg undid, after the user spent it: the
    platform's loss, until the user's next deposit fills it."""
    return Account(wallet, "shortfall")


async def balance(db: AsyncSession, account: Account) -> Decimal:
    """The account's balance in FAR; zero for one that was never posted to."""
    found = await db.scalar(
        select(BALANCES.c.balance).where(
            BALANCES.c.owner == account.owner, BALANCES.c.kind == account.kind
        )
    )
    return ZERO if found is None else found


async def balances_of(db: AsyncSession, owner: str) -> dict[str, Decimal]:
    """What an owner has now on each kind of account, in FAR; nothing for one never posted to."""
    rows = await db.execute(
        select(BALANCES.c.kind, BALANCES.c.balance).where(BALANCES.c.owner == owner)
    )
    return {row.kind: row.balance for row in rows}


async def balances_at(
    db: AsyncSession, instant: dt.datetime, *, owner: str | None = None
) -> dict[Account, Decimal]:
    """Balances in FAR as they were at a time, summed up from the entries until then.

    An entry counts from the moment in which it was posted, which others see when its database
    transaction ends.

    Args:
        owner: Only this owner's accounts, which an index finds; all accounts otherwise.
    """
    statement = (
        select(LedgerAccount.owner, LedgerAccount.kind, func.sum(LedgerEntry.amount))
        .join(LedgerEntry, LedgerEntry.account_id == LedgerAccount.id)
        .where(LedgerEntry.posted_at <= instant)
        .group_by(LedgerAccount.owner, LedgerAccount.kind)
    )
    if owner is not None:
        statement = statement.where(LedgerAccount.owner == owner)
    rows = await db.execute(statement)
    return {Account(owner, kind): amount for owner, kind, amount in rows}
