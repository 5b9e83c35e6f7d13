"""Nothing is held for new jobs while the chain's index is far behind: who has withdrawn meanwhile
would spend what he does not have any more."""

import datetime as dt

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from market.escrow.tables import ChainCursor
from market.jobs.errors import ChainIndexBehind
from market.settings.payments import PaymentsSettings

RETRY_SECONDS = 60
"""Seconds after which an index that has been repaired may be up to date."""


async def index_age(db: AsyncSession, payments: PaymentsSettings) -> float | None:
    """Seconds since the time until which the ledger knows what has happened on the chain; none
    where there is no contract, or none of it was ever read."""
    if not payments.escrow_contract:
        return None
    until = await db.scalar(
        select(ChainCursor.indexed_until).where(
            ChainCursor.contract == payments.escrow_contract.lower()
        )
    )
    return None if until is None else (dt.datetime.now(dt.UTC) - until).total_seconds()


async def check_index(db: AsyncSession, payments: PaymentsSettings) -> None:
    """
    Raises:
        ChainIndexBehind: the index is older than `index_max_age`.
    """
    age = await index_age(db, payments)
    if payments.index_max_age and age is not None and age > payments.index_max_age:
        raise ChainIndexBehind(
            "What happened on the chain lately is not known yet, so nothing can be spent. Try "
            "again later.",
            retry_after=RETRY_SECONDS,
        )
