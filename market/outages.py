"""What counts as Postgres or Redis being away, and whether they are now."""

import asyncio

import redis.exceptions
import sqlalchemy
import sqlalchemy.exc
import structlog
from redis.asyncio import Redis

from market.db import Sessions
from market.errors import Unavailable

log = structlog.get_logger()


OUTAGE_RETRY = 5
"""Seconds: about what a restart of Redis or a failover of Postgres takes."""

QUERY_CANCELED = "57014"
"""Postgres' word that a statement took longer than its limit."""

OUTAGES: tuple[type[Exception], ...] = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.WatchError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    sqlalchemy.exc.DBAPIError,
    sqlalchemy.exc.TimeoutError,
    OSError,
)
"""What may be raised while Redis or Postgres cannot be reached, fails over, or is full. redis-py
raises its WatchError also where a connection is lost between a WATCH and its transaction."""

TOO_SLOW = ("57014", "55P03", "25P03")
"""Postgres' codes of its time limits: of a statement, a lock, a transaction that nobody goes on
with."""


DATA_CLASSES = ("22", "23")
"""Classes of Postgres' codes: of a value that a column cannot hold, and of a broken constraint."""


def is_outage(error: BaseException) -> bool:
    """Whether an error may be over when the same is tried again: it is one of :data:`OUTAGES`, and
    not Postgres' or its driver's word on a value, which stays as it is."""
    if not isinstance(error, OUTAGES):
        return False
    if not isinstance(error, sqlalchemy.exc.DBAPIError):
        return True
    return (_sqlstate(error) or "")[:2] not in DATA_CLASSES


def unavailable(error: Exception) -> Unavailable:
    """What a caller is told of an outage.

    Raises:
        DBAPIError: the error itself, if it is Postgres' word on a statement or a value, so a bug of
            ours.
    """
    if getattr(getattr(error, "orig", None), "sqlstate", None) == QUERY_CANCELED:
        log.warning("statement_timeout")
        return Unavailable("This takes too long now.", retry_after=OUTAGE_RETRY)
    if not is_outage(error):
        raise error
    lost = (sqlalchemy.exc.InterfaceError, sqlalchemy.exc.OperationalError)
    if isinstance(error, sqlalchemy.exc.DBAPIError) and not (
        error.connection_invalidated or isinstance(error, lost) or _sqlstate(error) in TOO_SLOW
    ):
        raise error
    log.warning("outage", error=type(error).__name__)
    return Unavailable("A part of the mesh cannot be reached now.", retry_after=OUTAGE_RETRY)


def _sqlstate(error: sqlalchemy.exc.DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


async def reached(sessions: Sessions, client: Redis, *, within: float) -> dict[str, bool]:
    """Which of Postgres and Redis answer within so many seconds each."""
    postgres, answering = await asyncio.gather(
        postgres_answers(sessions, within=within), redis_answers(client, within=within)
    )
    return {"postgres": postgres, "redis": answering}


async def postgres_answers(sessions: Sessions, *, within: float) -> bool:
    """Whether Postgres answers a query within so many seconds."""
    try:
        async with asyncio.timeout(within), sessions() as db:
            await db.execute(sqlalchemy.text("SELECT 1"))
    except (sqlalchemy.exc.SQLAlchemyError, OSError):
        return False
    return True


async def redis_answers(client: Redis, *, within: float) -> bool:
    """Whether Redis answers a ping within so many seconds."""
    try:
        async with asyncio.timeout(within):
            await client.ping()
    except (redis.exceptions.RedisError, OSError):
        return False
    return True
