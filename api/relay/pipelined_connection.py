"""One connection to Redis for many callers.

Commands that come while a round trip is under way go out together in the next one: the more nodes
push at once, the less each push costs. Commands are packed and answers parsed by redis-py's
connection; its client and pipeline would take most of a hop's time.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, RedisError, ResponseError

Command = tuple[Any, ...]
"""A command's name and arguments."""

_Call = tuple[Sequence[Command], asyncio.Future[list[Any]]]


class PipelinedConnection:
    """Opened when first used; begins anew after an error, since it then holds answers that nobody
    reads. Close it when done."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._pending: list[_Call] = []
        self._running: asyncio.Task[None] | None = None

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """One answer a command, in order; a command that Redis refuses is answered by the error.

        Raises:
            RedisError: Redis cannot be reached, or does not answer in time. The commands may have
                been done.
        """
        if not commands:
            return []
        answers: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._pending.append((commands, answers))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await answers

    async def close(self) -> None:
        """Close it; calls that are pending get an error."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        _fail(self._pending, ConnectionError("The connection was closed."))
        await self._connection.disconnect(nowait=True)

    async def _run(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                await self._round_trip(batch)
        finally:
            self._running = None

    async def _round_trip(self, batch: list[_Call]) -> None:
        connection = self._connection
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            together = [command for commands, _ in batch for command in commands]
            await connection.send_packed_command(connection.pack_commands(together))
            for commands, answers in batch:
                found = [await _answer(connection) for _ in commands]
                if not answers.done():  # its caller may have been cancelled
                    answers.set_result(found)
        except asyncio.CancelledError:
            _fail(batch, ConnectionError("The connection was closed."))
            raise
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            _fail(batch, error if isinstance(error, RedisError) else ConnectionError(str(error)))


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _fail(batch: Sequence[_Call], error: RedisError) -> None:
    for _, answers in batch:
        if not answers.done():
            answers.set_exception(error)
