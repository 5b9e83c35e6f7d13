"""Which generations are on which route: read from the live records, remembered for a moment."""

import time
from collections.abc import Iterable

from api.relay.pipelined_connection import Command, PipelinedConnection
from mesh import redis_keys
from mesh.route_record import EPOCH, ROUTE, RouteRecord, epoch_of

TTL_SECONDS = 0.2
"""For which a route is taken as it was read. A step of an epoch that ended in between gets through
and is dropped by its receiver, which compares epochs itself; a token does not: Redis compares again
when it is written."""

MAX_ENTRIES = 10_000

RouteKey = tuple[str, int]
"""A request id and an epoch."""


class RouteCache:
    """Routes that are not in it, or too old, are read from Redis, all in one round trip."""

    def __init__(self, connection: PipelinedConnection) -> None:
        self._connection = connection
        self._entries: dict[RouteKey, tuple[float, RouteRecord]] = {}

    async def find(self, keys: Iterable[RouteKey]) -> dict[RouteKey, RouteRecord]:
        """The routes of those generations whose epoch is the one that may write now.

        Raises:
            RedisError: Redis does not answer.
        """
        oldest = time.monotonic() - TTL_SECONDS
        found: dict[RouteKey, RouteRecord] = {}
        missing: list[RouteKey] = []
        for key in keys:
            read_at, route = self._entries.get(key, (0.0, None))
            if route is not None and read_at >= oldest:
                found[key] = route
            else:
                missing.append(key)
        if missing:
            found.update(await self._read(missing))
        return found

    async def _read(self, keys: list[RouteKey]) -> dict[RouteKey, RouteRecord]:
        commands: list[Command] = [
            ("HMGET", redis_keys.live_record(request_id), EPOCH, ROUTE) for request_id, _ in keys
        ]
        answers = await self._connection.call(commands)
        now = time.monotonic()
        if len(self._entries) > MAX_ENTRIES:
            self._entries.clear()
        found: dict[RouteKey, RouteRecord] = {}
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            epoch, packed = answer
            route = RouteRecord.unpack(packed)
            if route is not None and epoch_of(epoch) == key[1]:
                found[key] = route
                self._entries[key] = (now, route)
            else:
                self._entries.pop(key, None)
        return found
