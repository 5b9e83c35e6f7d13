"""How money moves through a generation. Each function returns whether it posted now; false if the
same posting was made before."""

from collections.abc import Mapping
from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from market.ledger import spending_caps
from market.ledger.accounts import (
    PLATFORM,
    Account,
    available,
    balance,
    clearing,
    held,
    owed,
    paid,
    shortfall,
)
from market.ledger.errors import InsufficientBalance, SpendingCapExceeded
from market.ledger.key_spending import KeyDay, commit_key, return_to_key
from market.money import ZERO, format_exact

POST = text(
    "SELECT ledger_post(:kind, :reference, CAST(:owners AS text[]), CAST(:kinds AS text[]), "
    "CAST(:amounts AS numeric[]), :wallet, CAST(:committed AS numeric), :occurrence)"
)


async def deposit(db: AsyncSession, *, reference: str, wallet: str, amount: Decimal) -> bool:
    """Credit a confirmed deposit. ``reference``: transaction hash and log index.

    A deposit first fills the wallet's shortfall. So one that was spent, undone by a reorg
    and is on the chain again is credited once.
    """
    await spending_caps.lock_wallet(db, wallet)
    filled = min(amount, -await balance(db, shortfall(wallet)))
    postings = {
        clearing(): -amount,
        available(wallet): amount - filled,
        shortfall(wallet): filled,
    }
    return await post(db, "deposit", reference, postings, wallet=wallet)


async def check_available(
    db: AsyncSession, *, wallet: str, amount: Decimal, at_least: bool = False
) -> None:
    """Refuse early what :func:`hold` would refuse now, without a lock; only the hold is certain.

    Args:
        at_least: The hold may be of more than this amount.

    Raises:
        InsufficientBalance: the user has less than that available.
    """
    if await balance(db, available(wallet)) < amount:
        raise _insufficient(amount, at_least=at_least)


async def hold(
    db: AsyncSession, *, job: str, wallet: str, amount: Decimal, key: KeyDay | None = None
) -> bool:
    """Reserve what a generation may cost at most, and commit to the user's spending cap.

    Args:
        key: The API key that asked for the job, and whose limits its cost counts against.

    Raises:
        InsufficientBalance: the user has less than that available, or has asked to withdraw it.
            The transaction is then lost.
        SpendingCapExceeded: the user has not signed for so much. The transaction is then lost.
        KeyLimitReached: a limit of the key leaves less than that. The transaction has to be rolled
            back.
        NotAuthenticated: the key was revoked, or has expired. So it has here.
    """
    postings = {available(wallet): -amount, held(wallet): amount}
    try:
        posted = await post(db, "hold", job, postings, wallet=wallet, committed=amount)
    except IntegrityError as error:
        refusal = str(error.orig)
        if "check_balance_not_negative" in refusal:
            raise _insufficient(amount) from None
        if "check_within_spending_cap" in refusal:
            raise SpendingCapExceeded(
                f"This request may cost up to {format_exact(amount)} FAR, which is more than is "
                "left of your spending cap. Sign a higher cap for the escrow contract (raiseCap), "
                "or lower max_tokens."
            ) from None
        raise
    if posted and key is not None:
        await commit_key(db, key, amount)  # under the wallet's lock, which the posting took
    return posted


async def capture(
    db: AsyncSession,
    *,
    job: str,
    wallet: str,
    held_amount: Decimal,
    shares: Mapping[str, Decimal],
    fee: Decimal,
    key: KeyDay | None = None,
) -> bool:
    """Turn a hold into what is owed; what is left of it returns to the user, to the cap, and to the
    limits of the API key that asked for the job.

    Args:
        shares: FAR by provider's wallet.
        fee: The platform's part, in FAR.
        key: As :func:`hold` was given it.

    Raises:
        ValueError: together they are more than was held.
    """
    cost = sum(shares.values(), fee)
    if cost > held_amount:
        raise ValueError(
            f"{job} cost {format_exact(cost)} FAR, and {format_exact(held_amount)} FAR were held."
        )
    postings = {owed(provider): share for provider, share in shares.items()}
    postings[owed(PLATFORM)] = fee
    postings[held(wallet)] = -held_amount
    postings[available(wallet)] = held_amount - cost
    left = held_amount - cost
    posted = await post(db, "capture", job, postings, wallet=wallet, committed=-left)
    if posted and key is not None:
        await return_to_key(db, key, left)
    return posted


async def release(
    db: AsyncSession, *, job: str, wallet: str, amount: Decimal, key: KeyDay | None = None
) -> bool:
    """Give a hold back whole: to the user, to the cap, and to the limits of the API key that
    :func:`hold` was given."""
    postings = {held(wallet): -amount, available(wallet): amount}
    posted = await post(db, "release", job, postings, wallet=wallet, committed=-amount)
    if posted and key is not None:
        await return_to_key(db, key, amount)
    return posted


async def settle(db: AsyncSession, *, batch: str, amounts: Mapping[str, Decimal]) -> bool:
    """Mark what a confirmed batch paid. ``amounts``: FAR by owner (wallets and the platform)."""
    postings: dict[Account, Decimal] = {}
    for owner, amount in amounts.items():
        postings[owed(owner)] = -amount
        postings[paid(owner)] = amount
    return await post(db, "settle", batch, postings)


def _insufficient(amount: Decimal, *, at_least: bool = False) -> InsufficientBalance:
    figure = format_exact(amount)
    cost = f"{figure} FAR or more" if at_least else f"up to {figure} FAR"
    return InsufficientBalance(
        f"This request may cost {cost}, which is more than is available. Deposit more, or lower "
        "max_tokens."
    )


async def post(
    db: AsyncSession,
    kind: str,
    reference: str,
    postings: Mapping[Account, Decimal],
    *,
    wallet: str | None = None,
    committed: Decimal = ZERO,
    occurrence: int = 0,
) -> bool:
    """Post one transaction, in one round trip; false if (kind, reference) was posted before.

    Args:
        postings: FAR by account; zeros are skipped.
        wallet: The user whose money this moves, if it is a user's. Postings of one wallet wait for
            each other.
        committed: Change of what counts against the wallet's spending cap, in FAR.
        occurrence: Which occurrence of an event a reversal undoes; else the database counts.
    """
    entries = [(account, amount) for account, amount in postings.items() if amount]
    posted = await db.scalar(
        POST,
        {
            "kind": kind,
            "reference": reference,
            "owners": [account.owner for account, _ in entries],
            "kinds": [account.kind for account, _ in entries],
            "amounts": [amount for _, amount in entries],
            "wallet": wallet,
            "committed": committed,
            "occurrence": occurrence,
        },
    )
    return bool(posted)
