"""Tasks written in the transaction that needs them, then sent."""

import datetime as dt

from arq.connections import ArqRedis
from sqlalchemy import (
    BigInteger,
    Identity,
    Index,
    String,
    delete,
    func,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from market.db import INSTANT, Base, Sessions
from market.queue import enqueue

BATCH_SIZE = 100
"""Rows sent in one transaction."""

KEPT = dt.timedelta(days=1)
"""How long a row that was sent stays, for whoever looks for what happened."""


class Outbox(Base):
    """A task for the workers, written in the transaction that makes it necessary."""

    __tablename__ = "outbox"
    __table_args__ = (Index("idx_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task: Mapped[str] = mapped_column(String(50))
    argument: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    sent_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)


async def send_outbox(sessions: Sessions, queue: ArqRedis) -> int:
    """Enqueue the tasks that transactions left in the outbox, one batch of them; returns how many.

    Rows are locked while they are sent, and skipped by other senders. Killed between sending and
    commit, a task is sent again, which is harmless.
    """
    async with sessions.begin() as db:
        rows = (
            await db.scalars(
                select(Outbox)
                .where(Outbox.sent_at.is_(None))
                .order_by(Outbox.id)
                .limit(BATCH_SIZE)
                .with_for_update(skip_locked=True)
            )
        ).all()
        for row in rows:
            await enqueue(queue, row.task, row.argument, dedup_key=f"outbox:{row.id}")
        await _mark(db, [row.id for row in rows])
    return len(rows)


async def delete_sent(sessions: Sessions) -> None:
    """Delete the rows that were sent longer ago than they are kept."""
    async with sessions.begin() as db:
        await db.execute(delete(Outbox).where(Outbox.sent_at < func.now() - KEPT))


async def _mark(db: AsyncSession, ids: list[int]) -> None:
    if ids:
        await db.execute(update(Outbox).where(Outbox.id.in_(ids)).values(sent_at=func.now()))
