"""The five movements of money. Each returns whether it happened now, or had happened before."""

from collections.abc import Mapping
from decimal import Decimal

from sqlalchemy import insert, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from mesh.db import LedgerAccount, LedgerEntry, LedgerTransaction
from mesh.errors import InsufficientBalance
from mesh.ledger.accounts import PLATFORM, Account, available, clearing, held, owed, paid
from mesh.money import plain


async def deposit(db: AsyncSession, *, reference: str, wallet: str, amount: Decimal) -> bool:
    """Credit a confirmed deposit. ``reference``: transaction hash and log index."""
    return await _post(db, "deposit", reference, {clearing(): -amount, available(wallet): amount})


async def hold(db: AsyncSession, *, job: str, wallet: str, amount: Decimal) -> bool:
    """Reserve what a generation may cost at most.

    Raises:
        InsufficientBalance: the user has less than that available. The transaction is then lost.
    """
    try:
        return await _post(db, "hold", job, {available(wallet): -amount, held(wallet): amount})
    except IntegrityError as error:
        if "check_balance_not_negative" in str(error.orig):
            raise InsufficientBalance(
                f"This request may cost up to {plain(amount)} FAR, which is more than is "
                "available. Deposit more, or lower max_tokens."
            ) from None
        raise


async def capture(
    db: AsyncSession,
    *,
    job: str,
    wallet: str,
    held_amount: Decimal,
    shares: Mapping[str, Decimal],
    fee: Decimal,
) -> bool:
    """Turn a hold into what is owed; what is left of it returns to the user.

    Args:
        shares: FAR by provider's wallet.
        fee: The platform's part, in FAR.
    """
    cost = sum(shares.values(), fee)
    postings = {owed(provider): share for provider, share in shares.items()}
    postings[owed(PLATFORM)] = fee
    postings[held(wallet)] = -held_amount
    postings[available(wallet)] = held_amount - cost
    return await _post(db, "capture", job, postings)


async def release(db: AsyncSession, *, job: str, wallet: str, amount: Decimal) -> bool:
    """Give a hold back whole."""
    return await _post(db, "release", job, {held(wallet): -amount, available(wallet): amount})


async def settle(db: AsyncSession, *, batch: str, amounts: Mapping[str, Decimal]) -> bool:
    """Mark what a confirmed batch paid. ``amounts``: FAR by owner (wallets and the platform)."""
    postings: dict[Account, Decimal] = {}
    for owner, amount in amounts.items():
        postings[owed(owner)] = -amount
        postings[paid(owner)] = amount
    return await _post(db, "settle", batch, postings)


async def _post(
    db: AsyncSession, kind: str, reference: str, postings: Mapping[Account, Decimal]
) -> bool:
    transaction = await db.scalar(
        upsert(LedgerTransaction)
        .values(kind=kind, reference=reference)
        .on_conflict_do_nothing(constraint="uq_ledger_transactions_ref")
        .returning(LedgerTransaction.id)
    )
    if transaction is None:
        return False
    amounts = {account: amount for account, amount in postings.items() if amount}
    ids = await _account_ids(db, amounts)
    # In the order of account ids: balances are locked one by one, and two transactions that
    # lock them in different orders would wait for each other.
    rows = sorted((ids[account], amount) for account, amount in amounts.items())
    for account_id, amount in rows:
        await db.execute(
            insert(LedgerEntry).values(
                transaction_id=transaction, account_id=account_id, amount=amount
            )
        )
    return True


async def _account_ids(db: AsyncSession, accounts: Mapping[Account, Decimal]) -> dict[Account, int]:
    if not accounts:
        return {}
    await db.execute(
        upsert(LedgerAccount)
        .values([account._asdict() for account in sorted(accounts)])
        .on_conflict_do_nothing(constraint="uq_ledger_accounts_owner_kind")
    )
    found = await db.execute(
        select(LedgerAccount.owner, LedgerAccount.kind, LedgerAccount.id).where(
            tuple_(LedgerAccount.owner, LedgerAccount.kind).in_(sorted(accounts))
        )
    )
    return {Account(owner, kind): account_id for owner, kind, account_id in found}
