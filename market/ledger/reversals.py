"""Reversals of postings whose events a reorg has undone, deeper than we waited for."""

from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from market.ledger.accounts import Account, available, balance, shortfall, withdrawing
from market.ledger.postings import post
from market.ledger.tables import LedgerAccount, LedgerEntry, LedgerTransaction
from market.ledger.withdrawals import lock_balances, report_shortfall, set_requested_amount
from market.money import ZERO

WITHDRAWALS = ("request_withdrawal", "cancel_withdrawal", "withdrawn")
REVERSIBLE = ("deposit", "settle", *WITHDRAWALS)
"""Kinds of transactions that follow the chain. Holds, captures and releases do not."""


async def reverse(db: AsyncSession, *, kind: str, reference: str) -> bool:
    """Post the exact opposite of a posted transaction.

    What the user has spent meanwhile becomes the wallet's shortfall. Afterwards the same (kind,
    reference) can be posted again, once its event is on the chain again. Several have to be
    reversed in the opposite order of their postings.

    Returns whether the reversal was posted now; false also if there is nothing to reverse.

    Raises:
        ValueError: a kind that does not follow the chain.
    """
    if kind not in REVERSIBLE:
        raise ValueError(f"{kind} does not come from the chain.")
    original = await db.scalar(
        select(LedgerTransaction)
        .where(LedgerTransaction.kind == kind, LedgerTransaction.reference == reference)
        .order_by(LedgerTransaction.occurrence.desc())
        .limit(1)
    )
    if original is None:
        return False
    postings = await _opposite(db, original)
    users = ("available", "withdrawing", "shortfall")
    owners = {account.owner for account in postings if account.kind in users}
    wallet = owners.pop() if owners else None
    missing = ZERO
    if wallet is not None:
        missing = await _clamp_to_balances(db, wallet, postings)
    posted = await post(
        db,
        "reverse",
        f"{kind}:{reference}",
        postings,
        wallet=wallet,
        occurrence=original.occurrence,
    )
    if posted and wallet is not None:
        report_shortfall(missing, reference=reference, wallet=wallet)
        if kind in WITHDRAWALS:
            _, set_aside = await lock_balances(db, wallet)
            await set_requested_amount(db, wallet, set_aside)
    return posted


async def _opposite(db: AsyncSession, original: LedgerTransaction) -> dict[Account, Decimal]:
    rows = await db.execute(
        select(LedgerAccount.owner, LedgerAccount.kind, LedgerEntry.amount)
        .join(LedgerAccount, LedgerAccount.id == LedgerEntry.account_id)
        .where(LedgerEntry.transaction_id == original.id)
    )
    return {Account(owner, kind): -amount for owner, kind, amount in rows}


async def _clamp_to_balances(
    db: AsyncSession, wallet: str, postings: dict[Account, Decimal]
) -> Decimal:
    """Change the postings so that neither the available nor the withdrawing balance falls below
    zero: each first gives what the other lacks, and what is then left fills the shortfall.

    Returns by how many FAR the shortfall grows.
    """
    free, set_aside = await lock_balances(db, wallet)
    before = await balance(db, shortfall(wallet))
    free += postings.get(available(wallet), ZERO)
    set_aside += postings.get(withdrawing(wallet), ZERO)
    lacking = before + postings.get(shortfall(wallet), ZERO)
    net = free + set_aside + lacking
    left = max(ZERO, net)
    left_free = min(left, max(ZERO, free))
    for account, amount in (
        (available(wallet), left_free - free),
        (withdrawing(wallet), left - left_free - set_aside),
        (shortfall(wallet), min(ZERO, net) - lacking),
    ):
        postings[account] = postings.get(account, ZERO) + amount
    return max(ZERO, before - min(ZERO, net))
