"""Spending caps: how much a user has signed may be debited in total, ever."""

from decimal import Decimal

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market.ledger.tables import SpendingCap


async def raise_cap(db: AsyncSession, *, wallet: str, maximum: Decimal) -> None:
    """Set a cap that the user has raised, in FAR. One that is lower than the present cap changes
    nothing, so an event may be read twice."""
    cap = insert(SpendingCap).values(wallet=wallet, signed=maximum, maximum=maximum)
    signed = func.greatest(SpendingCap.signed, maximum)
    await db.execute(
        cap.on_conflict_do_update(
            index_elements=[SpendingCap.wallet],
            set_={"signed": signed, "maximum": func.greatest(signed, SpendingCap.committed)},
        )
    )


async def lower_cap(db: AsyncSession, *, wallet: str, maximum: Decimal) -> None:
    """Set a cap that the user has lowered, in FAR. What is committed by now may still be debited;
    no hold may commit more than the new cap, also after some of that is released."""
    cap = insert(SpendingCap).values(wallet=wallet, signed=maximum, maximum=maximum)
    await db.execute(
        cap.on_conflict_do_update(
            index_elements=[SpendingCap.wallet],
            set_={
                "signed": maximum,
                "maximum": func.greatest(cap.excluded.signed, SpendingCap.committed),
            },
        )
    )


SOON_MS = 2000
"""Milliseconds that somebody waits for a wallet's row who keeps others waiting meanwhile."""


async def lock_wallet_soon(db: AsyncSession, wallet: str) -> None:
    """:func:`lock_wallet`, or an outage of Postgres if others have the row for longer than
    :data:`SOON_MS`."""
    await db.execute(text(f"SET LOCAL lock_timeout = {SOON_MS}"))
    await lock_wallet(db, wallet)
    await db.execute(text("SET LOCAL lock_timeout = DEFAULT"))


async def lock_wallet(db: AsyncSession, wallet: str) -> None:
    """Let nothing else move this wallet's money until the transaction ends."""
    await db.execute(insert(SpendingCap).values(wallet=wallet).on_conflict_do_nothing())
    await db.execute(
        select(SpendingCap.wallet).where(SpendingCap.wallet == wallet).with_for_update()
    )
