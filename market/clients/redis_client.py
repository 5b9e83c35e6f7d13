"""Redis: the one place that opens it, and the time limits of all that waits for it.

A command is never sent again: it may have been done, and not all may be done twice. Only what comes
before a command is tried twice: connecting, and the ping of a connection that nobody has used for
a while. So a connection that a firewall has forgotten costs a short wait, and no error.
"""

import asyncio
from typing import Any, cast

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio import UnixDomainSocketConnection as UnixConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout

from mesh.tcp_keepalive import TCP_OPTIONS

SILENCE_TIMEOUT = 5.0
"""Seconds after which a Redis that does not answer a command counts as unreachable."""

CONNECT_TIMEOUT = 2.0
"""Seconds for name, TCP and TLS; a second try follows."""

PING_AFTER = 5.0
"""Seconds without use after which a connection is pinged before the next command."""

PING_TIMEOUT = 2.0
"""Seconds for the answer to that ping."""

MAX_BLOCK = 2
"""Seconds that a command may block at most: well below :data:`SILENCE_TIMEOUT`, so that nothing to
say is never taken for silence."""

BEFORE_COMMANDS: Any = (RedisConnectionError, RedisTimeout, OSError)
"""Errors after which connecting and pinging are tried once more. redis-py tries a command once more
after those of `retry_on_error`, which are none."""


def block_ms(wait: float) -> int | None:
    """What BLOCK gets for a wait of ``wait`` seconds, :data:`MAX_BLOCK` at most; none if there is
    no wait. A BLOCK of 0 would mean for ever."""
    return max(1, round(1000 * min(wait, MAX_BLOCK))) if wait > 0 else None


def open_redis(url: str, *, max_connections: int | None = None) -> Redis:
    """A client of Redis, to be closed after use; connects when first used."""
    return Redis.from_pool(open_pool(url, max_connections=max_connections))


def open_pool(url: str, *, max_connections: int | None = None) -> ConnectionPool:
    """The connections of a client, for one that is not redis-py's own."""
    pool = _Pool.from_url(
        url,
        max_connections=max_connections,
        # A URL's query string would win over these: a limit that it sets is the operator's word.
        socket_timeout=SILENCE_TIMEOUT,
        socket_connect_timeout=CONNECT_TIMEOUT,
        health_check_interval=PING_AFTER,
        retry=Retry(NoBackoff(), 1, BEFORE_COMMANDS),
    )
    pool.connection_class = _PINGED[pool.connection_class]
    if issubclass(pool.connection_class, Connection):
        pool.connection_kwargs["socket_keepalive"] = True
        pool.connection_kwargs["socket_keepalive_options"] = TCP_OPTIONS
    return cast(ConnectionPool, pool)


class _Pool(ConnectionPool):
    """A pool in which connecting delays nobody else, and one silent connection closes all that are
    idle: whatever has swallowed it has most likely swallowed them, too."""

    def make_connection(self) -> AbstractConnection:
        connection = super().make_connection()  # type: ignore[no-untyped-call]
        connection.pool = self
        return cast(AbstractConnection, connection)

    async def get_connection(
        self, command_name: str | None = None, *keys: Any, **options: Any
    ) -> AbstractConnection:
        """As redis-py's, which holds a lock while it connects."""
        connection = cast(AbstractConnection, self.get_available_connection())  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def close_idle(self) -> None:
        for connection in list(self._available_connections):
            await connection.disconnect(nowait=True)


class _PingedConnection(AbstractConnection):
    """Pings within :data:`PING_TIMEOUT`, and loses no cancellation."""

    pool: _Pool | None = None

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        """As redis-py's, which waits by `asyncio.wait_for`. In Python 3.11 that returns as if
        nothing had happened when its task is cancelled at the moment in which it ends; then a
        process that is told to stop goes on."""
        task = asyncio.current_task()
        asked = task.cancelling() if task else 0
        await super().send_packed_command(*arguments, **options)
        if task and task.cancelling() > asked:
            await self.disconnect(nowait=True)  # the answer to the command is nobody's
            raise asyncio.CancelledError

    async def _send_ping(self) -> None:
        async with asyncio.timeout(PING_TIMEOUT):
            await super()._send_ping()  # type: ignore[no-untyped-call]

    async def _ping_failed(self, error: Exception) -> None:
        await super()._ping_failed(error)  # type: ignore[no-untyped-call]
        if self.pool is not None:
            await self.pool.close_idle()


class _TcpConnection(_PingedConnection, Connection):
    pass


class _TlsConnection(_PingedConnection, SSLConnection):
    pass


class _UnixConnection(_PingedConnection, UnixConnection):
    pass


_PINGED: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixConnection: _UnixConnection,
}
