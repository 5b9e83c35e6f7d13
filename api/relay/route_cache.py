"""Which generations are on which route: read from the live records, remembered for a moment."""

import time
from collections.abc import Iterable

from api.relay.pipelined_connection import Command, PipelinedConnection
from mesh import redis_keys
from mesh.route_record import EPOCH, ROUTE, RouteRecord, epoch_of
from mesh.token_stream import token_count_at

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
        self._entries: dict[RouteKey, tuple[float, RouteRecord, int]] = {}
        """When each was read, the route, and how many tokens there were."""

    async def find(self, keys: Iterable[RouteKey]) -> dict[RouteKey, RouteRecord]:
        """The routes of those generations whose epoch is the one that may write now.

        Raises:
            RedisError: Redis does not answer.
        """
        oldest = time.monotonic() - TTL_SECONDS
        found: dict[RouteKey, RouteRecord] = {}
        missing: list[RouteKey] = []
        for key in keys:
            read_at, route, _ = self._entries.get(key, (0.0, None, 0))
            if route is not None and read_at >= oldest:
                found[key] = route
            else:
                missing.append(key)
        if missing:
            found.update(await self._read(missing))
        return found

    def tokens(self, key: RouteKey) -> int | None:
        """How many tokens the generation had when its route was read; none if that is forgotten."""
        entry = self._entries.get(key)
        return None if entry is None else entry[2]

    async def _read(self, keys: list[RouteKey]) -> dict[RouteKey, RouteRecord]:
        commands: list[Command] = [
            command
            for request_id, _ in keys
            for command in (
                ("HMGET", redis_keys.live_record(request_id), EPOCH, ROUTE),
                ("XREVRANGE", redis_keys.tokens(request_id), "+", "-", "COUNT", 1),
            )
        ]
        answers = await self._connection.call(commands)
        now = time.monotonic()
        if len(self._entries) > MAX_ENTRIES:
            self._entries.clear()
        found: dict[RouteKey, RouteRecord] = {}
        for key, record, newest in zip(keys, answers[::2], answers[1::2], strict=True):
            for answer in (record, newest):
                if isinstance(answer, Exception):
                    raise answer
            epoch, packed = record
            route = RouteRecord.unpack(packed)
            if route is not None and epoch_of(epoch) == key[1]:
                found[key] = route
                tokens = token_count_at(newest[0][0].decode()) if newest else 0
                self._entries[key] = (now, route, tokens)
            else:
                self._entries.pop(key, None)
        return found
