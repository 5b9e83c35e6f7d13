"""How long inboxes are in Redis: one by one, and all together.

A node that does not read leaves what it is sent in Redis. So inboxes are measured as they grow,
what was measured is summed up, and where the sum is too high the longest inbox is emptied, whose
generations then get other routes. Redis itself sums up, in a script, so that the sum is right
whatever several processes do at once. Inboxes lie in other slots of a cluster than their sum, so
they are measured by a command of their own, and once more before one of them is emptied.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ResponseError

from api.relay.pipelined_connection import Command, PipelinedConnection
from market.settings.relay import RelaySettings
from mesh import redis_keys
from mesh.wire.limits import INBOX_TTL

CHECKS_PER_INBOX = 16
"""Times that an inbox is measured while it fills up to what it may hold."""

CHECKS_OF_ALL = 64
"""Times that a process measures all inboxes that it has written to, while they fill up to what all
may hold: it passes the limit by a sixty-fourth at most."""

UNREAD_TTL = 120
"""Seconds for which an inbox is kept that has something unread, and whose node is not there: its
generations have long gone elsewhere."""

NOTED_BYTES = 2**20
"""Up to which an inbox that is read is not summed up; and by which its size changes until it is
summed up again."""

NOTED_SECONDS = 30.0

MEASURED_BYTES_PER_SECOND = 2**24
"""Of one node's inbox, with its keep-alives: Redis does nothing else while it measures. What is
pushed is measured besides, as it grows."""

MEASURED_AT_ONCE = 2**16
"""Bytes up to which an inbox is measured with each keep-alive."""

MAX_NOTED = 10_000

MAX_EMPTIED = 64
"""Inboxes that one call looks at, when all are too long."""

MEASURE_INBOX = """
local there = redis.call('EXISTS', KEYS[2]) == 1
local ttl = there and ARGV[1] or ARGV[2]
redis.call('EXPIRE', KEYS[1], ttl)
local bytes = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0) or 0
if bytes <= tonumber(ARGV[3]) then return {bytes, tonumber(ttl), 0} end
redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)
return {0, tonumber(ttl), 1}
"""
"""Bytes of an inbox, the seconds that it lives, and 1 if it was too long, and was emptied. Keys:
inbox, keep-alive. Arguments: seconds to live if the node is there, and if not; bytes at most."""

_SUM_UP = """
local now = tonumber(redis.call('TIME')[1])
local change = 0
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('DEL', unpack(KEYS))  -- one of them was evicted
end
local function set(node, bytes)
    change = change - tonumber(redis.call('ZSCORE', KEYS[1], node) or '0') + bytes
    if bytes > 0 then
        redis.call('ZADD', KEYS[1], bytes, node)
    else
        redis.call('ZREM', KEYS[1], node)
        redis.call('ZREM', KEYS[2], node)
    end
end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do
    set(node, 0)
end
for index = 3, #ARGV, 3 do
    set(ARGV[index], tonumber(ARGV[index + 1]))
    if tonumber(ARGV[index + 1]) > 0 then
        redis.call('ZADD', KEYS[2], now + tonumber(ARGV[index + 2]), ARGV[index])
    end
end
local total = redis.call('INCRBY', KEYS[3], change)
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
if total <= tonumber(ARGV[1]) then return {total} end
return {total, redis.call('ZREVRANGE', KEYS[1], 0, 0)[1]}
"""
"""The sum of all inboxes; and the longest one's node, if the sum is too high. Keys: sizes, when
each of them is gone, their sum. Arguments: bytes of all at most; seconds to live of the keys;
nodes, each with the bytes of its inbox and the seconds that this lives."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class InboxSize:
    """What a node's inbox was measured to have, after it was emptied if that was too much; and the
    seconds that it lives if nobody reads it or adds to it."""

    node_id: str
    bytes: int
    ttl: int = UNREAD_TTL


class InboxSizes:
    """Measures inboxes for one process, and empties those that are too long."""

    def __init__(self, connection: PipelinedConnection, settings: RelaySettings) -> None:
        self._connection = connection
        self._max_one = settings.max_inbox_bytes
        self._max_all = settings.max_inboxes_bytes
        self._noted: dict[str, tuple[int, float]] = {}
        self._due_at: dict[str, float] = {}

    def measure(self, node_id: str) -> Command:
        """The command that measures a node's inbox; its answer is for :meth:`measured`."""
        keys = (redis_keys.inbox(node_id), redis_keys.keepalive(node_id))
        return ("EVAL", MEASURE_INBOX, 2, *keys, INBOX_TTL, UNREAD_TTL, self._max_one)

    def measured(self, node_id: str, answer: Sequence[int]) -> InboxSize:
        """What the command that measures has found."""
        size, ttl, emptied = answer
        if emptied:
            log.warning("inbox_emptied", node_id=node_id, reason="inbox_full")
        return InboxSize(node_id, size, ttl)

    def is_due(self, node_id: str) -> bool:
        """Whether to measure a node's inbox with its keep-alive."""
        return time.monotonic() >= self._due_at.get(node_id, 0.0)

    async def note(self, size: InboxSize) -> None:
        """Sum up an inbox that its node reads, if it is long and has changed. The longer it is, the
        later it is due again.

        Raises:
            RedisError: Redis does not answer.
        """
        bytes_before, at = self._noted.get(size.node_id, (0, 0.0))
        now = time.monotonic()
        self._due_at.pop(size.node_id, None)
        if size.bytes > MEASURED_AT_ONCE:
            if len(self._due_at) > MAX_NOTED:
                self._due_at.clear()
            self._due_at[size.node_id] = now + max(1.0, size.bytes / MEASURED_BYTES_PER_SECOND)
        if size.bytes <= NOTED_BYTES and not bytes_before:
            return
        if abs(size.bytes - bytes_before) <= NOTED_BYTES and now - at < NOTED_SECONDS:
            return
        if size.bytes <= NOTED_BYTES:
            del self._noted[size.node_id]
        else:
            if len(self._noted) > MAX_NOTED:
                self._noted.clear()
            self._noted[size.node_id] = (size.bytes, now)
        await self.sum_up([size])

    async def sum_up(self, sizes: Sequence[InboxSize]) -> None:
        """Sum up inboxes; where all together have too much, empty the longest.

        Raises:
            RedisError: Redis does not answer.
        """
        total, longest = await self._sum(sizes)
        for _ in range(MAX_EMPTIED):
            if longest is None:
                return
            # Its node may have read it since; then the next one is the longest.
            [answer] = await self._call([self.measure(longest)])
            total, now_longest = await self._sum([self.measured(longest, answer)])
            if now_longest == longest:
                await self._call([("XTRIM", redis_keys.inbox(longest), "MAXLEN", 0)])
                log.warning("inbox_emptied", node_id=longest, reason="inboxes_full", bytes=total)
                total, now_longest = await self._sum([InboxSize(longest, 0)])
            longest = now_longest

    async def _sum(self, sizes: Sequence[InboxSize]) -> tuple[int, str | None]:
        keys = (redis_keys.INBOX_SIZES, redis_keys.INBOX_EXPIRIES, redis_keys.INBOXES_TOTAL)
        parts = [part for each in sizes for part in (each.node_id, each.bytes, each.ttl)]
        limits = (self._max_all, 2 * INBOX_TTL)
        [answer] = await self._call([("EVAL", _SUM_UP, 3, *keys, *limits, *parts)])
        return answer[0], answer[1].decode() if len(answer) > 1 else None

    async def _call(self, commands: Sequence[Command]) -> list[Any]:
        answers = await self._connection.call(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise answer
        return answers
