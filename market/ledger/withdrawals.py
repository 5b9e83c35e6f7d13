"""Withdrawals: users ask the contract for their money, wait, and take it.

The contract knows nothing of holds. So what a user asks for is set aside here at once, as far as it
is available, and the amount of the request is stored: until it is paid out or cancelled, a hold has
to leave that much, also of money that a release or a deposit brings meanwhile.
"""

from decimal import Decimal

import structlog
from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.ledger import spending_caps
from market.ledger.accounts import (
    BALANCES,
    available,
    balances_of,
    clearing,
    shortfall,
    withdrawing,
)
from market.ledger.postings import post
from market.ledger.tables import SpendingCap
from market.money import ZERO, format_exact

log = structlog.get_logger()


async def request_withdrawal(
    db: AsyncSession, *, reference: str, wallet: str, amount: Decimal
) -> bool:
    """The user asked the contract for ``amount`` FAR; an earlier request is replaced.

    Sets aside what is available of it. ``reference``: transaction hash and log index. Returns
    whether that happened now, or had happened before.
    """
    free, set_aside = await lock_balances(db, wallet)
    moved = min(amount, free + set_aside) - set_aside
    postings = {available(wallet): -moved, withdrawing(wallet): moved}
    posted = await post(db, "request_withdrawal", reference, postings, wallet=wallet)
    if posted:
        await set_requested_amount(db, wallet, amount)
    return posted


async def cancel_withdrawal(db: AsyncSession, *, reference: str, wallet: str) -> bool:
    """The user cancelled the request: what was set aside is available again.

    ``reference``: transaction hash and log index. Returns whether that happened now, or had
    happened before.
    """
    _, set_aside = await lock_balances(db, wallet)
    postings = {withdrawing(wallet): -set_aside, available(wallet): set_aside}
    posted = await post(db, "cancel_withdrawal", reference, postings, wallet=wallet)
    if posted:
        await set_requested_amount(db, wallet, ZERO)
    return posted


async def complete_withdrawal(
    db: AsyncSession, *, reference: str, wallet: str, amount: Decimal
) -> bool:
    """The contract paid ``amount`` FAR out to the user, which ends the request.

    It is taken from what was set aside, then from what is available. What is still missing the
    contract let out although it is held or owed: the wallet's shortfall.

    ``reference``: transaction hash and log index. Returns whether that happened now, or had
    happened before.
    """
    free, set_aside = await lock_balances(db, wallet)
    missing = max(ZERO, amount - set_aside - free)
    postings = {
        clearing(): amount,
        withdrawing(wallet): -set_aside,
        available(wallet): set_aside - amount + missing,
        shortfall(wallet): -missing,
    }
    posted = await post(db, "withdrawn", reference, postings, wallet=wallet)
    if posted:
        await set_requested_amount(db, wallet, ZERO)
        report_shortfall(missing, reference=reference, wallet=wallet)
    return posted


def exceeds_balance() -> ColumnElement[bool]:
    """SQL: the owner of a row of spending caps has asked the contract for more than is available
    and set aside, so that it would pay out what is held or owed. Where less was asked for, a hold
    leaves that much, and the request endangers nothing however long it stands."""
    has = (
        select(func.coalesce(func.sum(BALANCES.c.balance), 0))
        .where(
            BALANCES.c.owner == SpendingCap.wallet,
            BALANCES.c.kind.in_(("available", "withdrawing")),
        )
        .correlate(SpendingCap)
        .scalar_subquery()
    )
    return and_(SpendingCap.withdrawal > 0, SpendingCap.withdrawal > has)


async def lock_balances(db: AsyncSession, wallet: str) -> tuple[Decimal, Decimal]:
    """What is available and what is set aside, in FAR; neither changes until the transaction
    ends, except by the transaction itself."""
    await spending_caps.lock_wallet(db, wallet)
    found = await balances_of(db, wallet)
    return found.get("available", ZERO), found.get("withdrawing", ZERO)


async def set_requested_amount(db: AsyncSession, wallet: str, amount: Decimal) -> None:
    """Store how much the user has asked for and not been paid, in FAR; holds have to leave that."""
    await db.execute(
        update(SpendingCap).where(SpendingCap.wallet == wallet).values(withdrawal=amount)
    )


def report_shortfall(missing: Decimal, *, reference: str, wallet: str) -> None:
    """Log and count FAR that the ledger counted on and that is gone, if any is."""
    if missing > 0:
        metrics.shortfall.inc(float(missing))
        log.error(
            "ledger_shortfall",
            user_wallet=wallet,
            amount_far=format_exact(missing),
            reference=reference,
        )
