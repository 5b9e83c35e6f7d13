"""Tasks written in the transaction that needs them, then sent."""

import datetime as dt

from arq.connections import ArqRedis
from sqlalchemy import (
    BigInteger,
    Identity,
    Index,
    String,
    func,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from market.db import INSTANT, Base, Sessions
from market.queue import BATCH, enqueue


class Outbox(Base):
    """Tasks for the workers, written in the transaction that makes them necessary."""

    __tablename__ = "outbox"
    __table_args__ = (Index("idx_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task: Mapped[str] = mapped_column(String(50))
    argument: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[dt.datetime] = mapped_column(INSTANT, server_default=func.now())
    sent_at: Mapped[dt.datetime | None] = mapped_column(INSTANT)


async def send_outbox(sessions: Sessions, queue: ArqRedis) -> int:
    """Send what transactions left in the outbox; returns how much that was.

    Rows are locked while they are sent, and skipped by others that send. Killed between sending
    and commit, it sends again, which is harmless.
    """
    async with sessions.begin() as db:
        rows = (
            await db.scalars(
                select(Outbox)
                .where(Outbox.sent_at.is_(None))
                .order_by(Outbox.id)
                .limit(BATCH)
                .with_for_update(skip_locked=True)
            )
        ).all()
        for row in rows:
            await enqueue(queue, row.task, row.argument, once=f"outbox:{row.id}")
        await _mark(db, [row.id for row in rows])
    return len(rows)


async def _mark(db: AsyncSession, ids: list[int]) -> None:
    if ids:
        await db.execute(update(Outbox).where(Outbox.id.in_(ids)).values(sent_at=func.now()))
