"""What the relay does for a node: greets it, forwards what it sends, reads its inbox, and keeps its
pulse."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from api.relay.connection_slots import ConnectionSlots
from api.relay.forwarder import Forwarding
from api.relay.pipelined_connection import PipelinedConnection
from api.relay.throttle import NodeThrottle
from market.nodes.node import NodeIncarnation
from market.settings.relay import RelaySettings
from mesh import redis_keys, wire
from mesh.errors import WireError
from mesh.relay import (
    MAX_FRAME_BYTES,
    VERSION,
    Hello,
    InboxDelivery,
    InboxEntry,
    KeepAlive,
    Push,
    PushAck,
    Welcome,
    is_cursor,
)
from mesh.wire.limits import INBOX_TTL

log = structlog.get_logger()

READ_COUNT = 16
"""Entries that are read from an inbox at once."""

FRAME_OVERHEAD = 1024

_GREET = """
local newest_registration = tonumber(redis.call('HGET', KEYS[1], 'registration') or '0')
if tonumber(ARGV[4]) < newest_registration then return nil end
local number = 0
if redis.call('HGET', KEYS[1], 'session') == ARGV[2] then
    number = tonumber(redis.call('HGET', KEYS[1], 'number'))
end
redis.call('HSET', KEYS[1], 'connection', ARGV[1], 'session', ARGV[2], 'number', number,
    'registration', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
return {number, newest[1] and newest[1][1] or '0-0'}
"""
"""The newest connection is the node's. Keys: link, inbox. Arguments: connection, session, seconds
to live, registration. Answer: the session's last push that was forwarded, the newest entry; or
nothing: a later registration of the node has connected."""

_PULSE = """
local owner = redis.call('HGET', KEYS[1], 'connection')
if owner and owner ~= ARGV[1] then return 0 end
if not owner then redis.call('HSET', KEYS[1], 'connection', ARGV[1]) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if redis.call('XLEN', KEYS[3]) > 0 then
    redis.call('XTRIM', KEYS[3], 'MINID', ARGV[5])
    redis.call('EXPIRE', KEYS[3], ARGV[4])
    for _, samples in ipairs({1, 0}) do
        local bytes = redis.call('MEMORY', 'USAGE', KEYS[3], 'SAMPLES', samples)
        if not bytes or bytes <= tonumber(ARGV[6]) then return 1 end
    end
    redis.call('XTRIM', KEYS[3], 'MAXLEN', 0)
    return 2
end
return 1
"""
"""1: alive. 0: another connection is the node's by now. 2: alive, and its inbox, which it does not
read, was emptied: its bytes are guessed first, and counted where that says too many. Keys: link,
pulse, inbox. Arguments: connection, room, milliseconds, seconds to live of the inbox, first entry
to keep, bytes of the inbox at most."""

_FAREWELL = """
if redis.call('HGET', KEYS[1], 'connection') == ARGV[1] then redis.call('DEL', KEYS[2]) end
"""


class RelayHub:
    """One a process. All methods raise ``RedisError`` if Redis does not answer; the node then tries
    again, here or elsewhere."""

    def __init__(self, pool: ConnectionPool, settings: RelaySettings) -> None:
        self.settings = settings
        self.pace = NodeThrottle(settings.messages_per_second, settings.bytes_per_second)
        self.seats = ConnectionSlots(settings.max_connections)
        self._pool = pool
        self._line = PipelinedConnection(pool)
        self._spare: list[PipelinedConnection] = []
        self._forwarding = Forwarding(self._line, settings.max_inbox_bytes)

    async def close(self) -> None:
        for line in (self._line, *self._spare):
            await line.close()

    async def greet(self, node: NodeIncarnation, hello: Hello) -> Welcome | None:
        """A node has connected; its earlier connection is not its own any more. None if a process
        that registered as the node later has connected before.

        Raises:
            WireError: it speaks another version.
        """
        if hello.version != VERSION:
            raise WireError(f"The relay speaks version {VERSION}, not {hello.version}.")
        connection = secrets.token_hex(8)
        keys = (redis_keys.relay_connection(node.node_id), redis_keys.inbox(node.node_id))
        arguments = (connection, hello.session, INBOX_TTL, node.number)
        answer = await self._do("EVAL", _GREET, 2, *keys, *arguments)
        if answer is None:
            return None
        number, newest = answer
        return Welcome(connection, number, hello.after or newest.decode())

    async def owns(self, node_id: str, connection: str) -> bool:
        """Whether this is still the node's newest connection."""
        owner = await self._do("HGET", redis_keys.relay_connection(node_id), "connection")
        return owner is None or owner.decode() == connection

    async def forward(self, node_id: str, session: str, push: Push) -> PushAck:
        """Forward what the node may send, and say what it may not."""
        return await self._forwarding.forward(node_id, session, push)

    async def pulse(self, node_id: str, connection: str, pulse: KeepAlive, ttl: float) -> bool:
        """The node lives, for ``ttl`` seconds; what it has read is trimmed. False if another
        connection is the node's by now."""
        keys = (
            redis_keys.relay_connection(node_id),
            redis_keys.keepalive(node_id),
            redis_keys.inbox(node_id),
        )
        state = await self._do(
            "EVAL",
            _PULSE,
            3,
            *keys,
            connection,
            pulse.room,
            round(1000 * ttl),
            INBOX_TTL,
            _following(pulse.after),
            self.settings.max_inbox_bytes,
        )
        if state == 2:
            log.warning("inbox_emptied", node_id=node_id)
        return bool(state)

    async def farewell(self, node_id: str, connection: str) -> None:
        """The node has said that it goes: it is dead at once, unless it is elsewhere by now."""
        keys = (redis_keys.relay_connection(node_id), redis_keys.keepalive(node_id))
        await self._do("EVAL", _FAREWELL, 2, *keys, connection)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PipelinedConnection]:
        """A way to Redis on which one may wait for work; nobody else waits behind it."""
        line = self._spare.pop() if self._spare else PipelinedConnection(self._pool)
        try:
            yield line
        except BaseException:  # also if its caller gives up: an answer is still to come
            await line.close()
            raise
        self._spare.append(line)

    async def read(
        self, line: PipelinedConnection, node_id: str, after: str, wait: float
    ) -> list[InboxDelivery]:
        """What came for a node after the cursor; waits up to ``wait`` seconds for it. In as many
        parts as there have to be frames."""
        inbox, block = redis_keys.inbox(node_id), max(1, round(1000 * wait))
        command = ("XREAD", "COUNT", READ_COUNT, "BLOCK", block, "STREAMS", inbox, after)
        [answer] = await line.call([command])
        if isinstance(answer, ResponseError):
            raise answer
        return _parts(answer[0][1]) if answer else []

    async def _do(self, *command: Any) -> Any:
        [answer] = await self._line.call([command])
        if isinstance(answer, ResponseError):
            raise answer
        return answer


def _parts(entries: Sequence[tuple[bytes, list[bytes]]]) -> list[InboxDelivery]:
    parts: list[InboxDelivery] = []
    size = MAX_FRAME_BYTES
    for entry_id, values in entries:
        fields = dict(zip(values[::2], values[1::2], strict=True))
        entry = InboxEntry(fields.get(wire.HEADER, b""), fields.get(wire.TENSOR, b""))
        after = entry_id.decode()
        own = len(entry.header) + len(entry.tensor) + FRAME_OVERHEAD
        if own > MAX_FRAME_BYTES:
            log.warning("message_too_large", bytes=own)  # its generation will be routed anew
            parts.append(InboxDelivery(after, []))
            size = MAX_FRAME_BYTES
        elif size + own > MAX_FRAME_BYTES:
            parts.append(InboxDelivery(after, [entry]))
            size = own
        else:
            parts[-1] = InboxDelivery(after, [*parts[-1].entries, entry])
            size += own
    return parts


def _following(cursor: str) -> str:
    """The first ID after the cursor's."""
    if not is_cursor(cursor):
        return "0-0"
    milliseconds, _, sequence = cursor.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
