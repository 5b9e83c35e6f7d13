"""Which generations are on which route: read from the live records, remembered for a moment."""

import time
from collections.abc import Iterable

from api.relay.pipelined_connection import Command, PipelinedConnection
from mesh import redis_keys
from mesh.route_record import EPOCH, ROUTE, RouteRecord, epoch_of

FRESH = 0.2
"""Seconds for which a route is taken as it was read. A step of an epoch that ended in between gets
through and is dropped by its receiver, which compares epochs itself; a token does not: Redis
compares again when it is written."""

MAX_KNOWN = 10_000
"""Generations that are remembered at a time."""

Key = tuple[str, int]
"""A request id and an epoch."""


class RouteCache:
    """A cache: what is not in it, or not fresh, is asked for, all in one round trip."""

    def __init__(self, line: PipelinedConnection) -> None:
        self._line = line
        self._known: dict[Key, tuple[float, RouteRecord]] = {}

    async def find(self, keys: Iterable[Key]) -> dict[Key, RouteRecord]:
        """The routes of those generations whose epoch is the one that may write now.

        Raises:
            RedisError: Redis does not answer.
        """
        oldest = time.monotonic() - FRESH
        found: dict[Key, RouteRecord] = {}
        asked: list[Key] = []
        for key in keys:
            read_at, route = self._known.get(key, (0.0, None))
            if route is not None and read_at >= oldest:
                found[key] = route
            else:
                asked.append(key)
        if asked:
            found.update(await self._ask(asked))
        return found

    async def _ask(self, keys: list[Key]) -> dict[Key, RouteRecord]:
        commands: list[Command] = [
            ("HMGET", redis_keys.live_record(request_id), EPOCH, ROUTE) for request_id, _ in keys
        ]
        answers = await self._line.call(commands)
        now = time.monotonic()
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        found: dict[Key, RouteRecord] = {}
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            epoch, packed = answer
            route = RouteRecord.unpack(packed)
            if route is not None and epoch_of(epoch) == key[1]:
                found[key] = route
                self._known[key] = (now, route)
            else:
                self._known.pop(key, None)
        return found
