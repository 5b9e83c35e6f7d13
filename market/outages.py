"""What counts as Postgres or Redis being away."""

import redis.exceptions
import sqlalchemy.exc
import structlog

from market.errors import Unavailable

log = structlog.get_logger()


OUTAGE_RETRY = 5
"""Seconds: about what a restart of Redis or a failover of Postgres takes."""

OUTAGES: tuple[type[Exception], ...] = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    sqlalchemy.exc.DBAPIError,
    sqlalchemy.exc.TimeoutError,
    OSError,
)
"""What may be raised while Redis or Postgres cannot be reached, fails over, or is full."""


def unavailable(error: Exception) -> Unavailable:
    """What a caller is told of an outage.

    Raises:
        DBAPIError: the error itself, if it is Postgres' word on a statement, so a bug of ours.
    """
    lost = (sqlalchemy.exc.InterfaceError, sqlalchemy.exc.OperationalError)
    if isinstance(error, sqlalchemy.exc.DBAPIError) and not (
        error.connection_invalidated or isinstance(error, lost)
    ):
        raise error
    log.warning("outage", error=type(error).__name__)
    return Unavailable("A part of the mesh cannot be reached now.", retry_after=OUTAGE_RETRY)
