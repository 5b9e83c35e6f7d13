"""Erasure of what may be read no more: tokens of ended jobs, and what is kept of requests."""

from sqlalchemy import delete, func, select, tuple_

from market.db import Sessions
from market.jobs.tables import StoredRequest, StoredTokens

ERASED_AT_ONCE = 1000
"""Rows that one transaction erases."""


async def erase_expired(sessions: Sessions) -> int:
    """Erase what may be read no more, :data:`ERASED_AT_ONCE` rows a transaction; returns how many
    rows there were."""
    return await _erase(sessions, StoredTokens) + await _erase(sessions, StoredRequest)


async def _erase(sessions: Sessions, table: type[StoredTokens] | type[StoredRequest]) -> int:
    columns = tuple(table.__table__.primary_key)
    expired = (
        select(*columns)
        .where(table.readable_until <= func.now())
        .order_by(table.readable_until)
        .limit(ERASED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    erased = 0
    while True:
        async with sessions.begin() as db:
            rows = await db.execute(
                delete(table).where(tuple_(*columns).in_(expired)).returning(table.session_id)
            )
            count = len(rows.all())
        erased += count
        if count < ERASED_AT_ONCE:
            return erased
