"""Types of columns, the base of all tables, and the one way to open a transaction."""

from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy import AdaptedConnection, DateTime, MetaData, Numeric, String, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase

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


def connect(database_url: str, *, pool_size: int = 10) -> tuple[AsyncEngine, Sessions]:
    """An engine and its transaction factory. Dispose of the engine when done."""
    engine = create_async_engine(
        database_url,
        pool_size=pool_size,
        max_overflow=pool_size,
        hide_parameters=True,  # an error message must not quote a row
    )
    event.listen(engine.sync_engine, "checkout", _refuse_lost)
    return engine, async_sessionmaker(engine, expire_on_commit=False)


READS_AT_ONCE = 4
"""Connections of a process for what strangers may read: as few as leave jobs and money the rest."""

READ_WAIT = 2.0
"""Seconds that a read waits for one of them; then the caller is told to come back."""


def connect_reads(database_url: str, *, timeout: float) -> tuple[AsyncEngine, Sessions]:
    """An engine of its own for reads, and its transaction factory: a few connections that cannot
    write, and on which Postgres ends a statement after ``timeout`` seconds. Dispose of the engine
    when done."""
    engine = create_async_engine(
        database_url,
        pool_size=READS_AT_ONCE,
        max_overflow=0,
        pool_timeout=READ_WAIT,
        hide_parameters=True,
        connect_args={
            "server_settings": {
                "statement_timeout": str(round(timeout * 1000)),
                "default_transaction_read_only": "on",
            }
        },
    )
    event.listen(engine.sync_engine, "checkout", _refuse_lost)
    return engine, async_sessionmaker(engine, expire_on_commit=False)


def _refuse_lost(connection: AdaptedConnection, record: object, proxy: object) -> None:
    """A restarted Postgres costs no request: a lost connection is made anew.

    One round trip. SQLAlchemy's own way, ``pool_pre_ping``, takes three, before a transaction that
    may be three itself.
    """
    try:
        connection.run_async(lambda driver: driver.execute("SELECT 1"))
    except (PostgresError, InterfaceError, OSError) as error:
        raise DisconnectionError from error
