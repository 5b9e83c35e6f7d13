"""Types of columns, the base of all tables, and the one way to open a transaction."""

from dataclasses import replace

from sqlalchemy import DateTime, MetaData, Numeric, String
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase

from market.clients.postgres import QUICK, TimeLimits, open_engine

AMOUNT = Numeric(38, 18)
WALLET = String(42)
INSTANT = DateTime(timezone=True)

Sessions = async_sessionmaker[AsyncSession]
"""``async with sessions.begin() as db:`` opens one transaction: commits, or rolls back on error."""


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def connect(
    database_url: str, *, pool_size: int = 10, limits: TimeLimits = QUICK
) -> tuple[AsyncEngine, Sessions]:
    """An engine and its transaction factory. Dispose of the engine when done."""
    engine = open_engine(database_url, limits, pool_size=pool_size, max_overflow=pool_size)
    return engine, async_sessionmaker(engine, expire_on_commit=False)


READS_AT_ONCE = 4
"""Connections of a process for what strangers may read, and as many for what those who are logged
in read of their own: as few as leave jobs and money the rest."""

READ_WAIT = 2.0
"""Seconds that a read waits for one of them; then the caller is told to come back."""


def connect_reads(database_url: str, *, timeout: float) -> tuple[AsyncEngine, Sessions]:
    """An engine of its own for reads, and its transaction factory: a few connections that cannot
    write, and on which Postgres ends a statement after ``timeout`` seconds. Dispose of the engine
    when done."""
    engine = open_engine(
        database_url,
        replace(QUICK, statement=timeout),
        read_only=True,
        pool_size=READS_AT_ONCE,
        max_overflow=0,
        pool_timeout=READ_WAIT,
    )
    return engine, async_sessionmaker(engine, expire_on_commit=False)
