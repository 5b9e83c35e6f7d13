"""Postgres: the one place that opens it, and the time limits of all that waits for it.

Two clocks. The server ends a statement that is slow, waits for a lock, or a transaction that nobody
goes on with, so that locks of a process that is gone are free. The client ends a statement that
nobody answers: a little later, so that slowness is never taken for silence. After silence the
whole pool is opened anew, since whatever has swallowed one connection has most likely swallowed
all.
"""

import math
from asyncio import CancelledError
from dataclasses import dataclass
from typing import Any

from asyncpg.exceptions import InterfaceError, PostgresError
from sqlalchemy import AdaptedConnection, ExceptionContext, event
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from mesh.tcp_keepalive import PROBE_AFTER, PROBE_INTERVAL, PROBES, UNACKNOWLEDGED_MS

CONNECT_TIMEOUT = 3.0
"""Seconds for name, TCP, TLS and login."""

PING_TIMEOUT = 2.0
"""Seconds for the answer to the ``SELECT 1`` with which a connection leaves the pool."""

POOL_TIMEOUT = 5.0
"""Seconds that a transaction waits for a connection of the pool."""

CANCELLED = "cancelled"
"""Of a pooled connection's `info`: whoever waited for its last statement was cancelled."""

SILENCE_MARGIN = 1.0
"""Seconds from the server's limit of a statement to the client's."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Time limits of a connection, in seconds; none for no limit."""

    statement: float | None
    """Of one statement, waits for locks included."""
    lock: float | None
    """Of a wait for one lock."""
    idle: float | None
    """From one statement of a transaction to the next."""


QUICK = TimeLimits(statement=8, lock=5, idle=8)
"""For requests and tasks, whose statements take milliseconds."""

LONG = TimeLimits(statement=600, lock=5, idle=60)
"""For what reads a whole ledger or closes a batch of thousands of generations."""

MIGRATION = TimeLimits(statement=None, lock=None, idle=None)
"""For migrations, which rewrite tables, set the limit of their locks themselves, and have somebody
who looks on."""


def open_engine(
    database_url: str, limits: TimeLimits = QUICK, *, read_only: bool = False, **options: Any
) -> AsyncEngine:
    """An engine, to be disposed of after use; connects when first used.

    Args:
        limits: Of its connections.
        read_only: Whether Postgres refuses to write.
        options: Of SQLAlchemy's engine, such as the sizes or the class of its pool.
    """
    if "poolclass" not in options:
        options.setdefault("pool_timeout", POOL_TIMEOUT)
    silence = None if limits.statement is None else limits.statement + SILENCE_MARGIN
    engine = create_async_engine(
        database_url,
        hide_parameters=True,  # an error message must not quote a row
        connect_args={
            "timeout": CONNECT_TIMEOUT,
            "command_timeout": silence,
            "server_settings": _server_settings(limits)
            | {"default_transaction_read_only": "on" if read_only else "off"},
        },
        **options,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_lost)
    event.listen(engine.sync_engine, "handle_error", _give_up_silent)
    event.listen(engine.sync_engine, "close", _close_at_once)
    return engine


def _server_settings(limits: TimeLimits) -> dict[str, str]:
    return {
        "statement_timeout": _milliseconds(limits.statement),
        "lock_timeout": _milliseconds(limits.lock),
        "idle_in_transaction_session_timeout": _milliseconds(limits.idle),
        # So the server, too, notices a client that is gone without a word, and frees its locks.
        "tcp_keepalives_idle": str(PROBE_AFTER),
        "tcp_keepalives_interval": str(PROBE_INTERVAL),
        "tcp_keepalives_count": str(PROBES),
        "tcp_user_timeout": str(UNACKNOWLEDGED_MS),
    }


def _milliseconds(seconds: float | None) -> str:
    return "0" if seconds is None else str(math.ceil(1000 * seconds))


def _refuse_lost(connection: AdaptedConnection, record: object, proxy: object) -> None:
    """A restarted Postgres costs no request: a lost connection is made anew, and after one that is
    silent all of the pool.

    One round trip. SQLAlchemy's own way, ``pool_pre_ping``, takes three, before a transaction that
    may be three itself.
    """
    try:
        connection.run_async(lambda driver: driver.execute("SELECT 1", timeout=PING_TIMEOUT))
    except TimeoutError as error:
        raise InvalidatePoolError from error
    except (PostgresError, InterfaceError, OSError) as error:
        raise DisconnectionError from error


def _give_up_silent(context: ExceptionContext) -> None:
    """After a statement that was not answered, all connections of the pool are made anew."""
    if isinstance(context.original_exception, TimeoutError):
        context.is_disconnect = True
    elif isinstance(context.original_exception, CancelledError) and context.connection is not None:
        context.connection.info[CANCELLED] = True


def _close_at_once(connection: AdaptedConnection, record: ConnectionPoolEntry) -> None:
    """asyncpg waits for the server to close, 2 s for each connection that is silent. Only after a
    cancelled statement it should, since then it tells the server."""
    if CANCELLED not in record.info:
        connection.driver_connection.terminate()
