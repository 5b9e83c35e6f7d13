"""What the relay does for a node, however it is connected: takes its hello, forwards what it sends,
reads its inbox, and records its keep-alives."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from api.relay.connection_slots import ConnectionSlots
from api.relay.forwarder import Forwarder
from api.relay.pipelined_connection import PipelinedConnection
from api.relay.throttle import NodeThrottle
from market.clients.redis_client import block_ms
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

ENTRIES_PER_READ = 16

DELIVERY_OVERHEAD = 1024
"""Bytes of a delivery beside its entries' headers and tensors."""

_HELLO = """
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
"""Makes a connection the node's. Keys: relay connection, inbox. Arguments: connection, session,
seconds to live, registration. Answer: the session's last push that was forwarded, the newest entry;
or nothing: a later registration of the node has connected."""

_KEEP_ALIVE = """
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
read, was emptied: its bytes are estimated first, and counted where that says too many. Keys: relay
connection, keep-alive, inbox. Arguments: connection, free positions of the KV cache, milliseconds
to live of the keep-alive, seconds to live of the inbox, first entry to keep, bytes of the inbox at
most."""

_GOODBYE = """
if redis.call('HGET', KEYS[1], 'connection') == ARGV[1] then redis.call('DEL', KEYS[2]) end
"""
"""Keys: relay connection, keep-alive. Arguments: connection."""


class RelayHub:
    """One a process. All methods raise ``RedisError`` if Redis does not answer; the node then tries
    again, at any replica."""

    def __init__(self, pool: ConnectionPool, settings: RelaySettings) -> None:
        self.settings = settings
        self.throttle = NodeThrottle(settings.messages_per_second, settings.bytes_per_second)
        self.slots = ConnectionSlots(settings.max_connections)
        self._pool = pool
        self._connection = PipelinedConnection(pool)
        self._idle: list[PipelinedConnection] = []
        self._forwarder = Forwarder(self._connection, settings.max_inbox_bytes)

    async def close(self) -> None:
        for connection in (self._connection, *self._idle):
            await connection.close()

    async def hello(self, node: NodeIncarnation, hello: Hello) -> Welcome | None:
        """Make this connection the node's, and its earlier one not; none if a process that
        registered as the node later has connected before.

        Raises:
            WireError: the node speaks another version.
        """
        if hello.version != VERSION:
            raise WireError(f"The relay speaks version {VERSION}, not {hello.version}.")
        connection = secrets.token_hex(8)
        keys = (redis_keys.relay_connection(node.node_id), redis_keys.inbox(node.node_id))
        arguments = (connection, hello.session, INBOX_TTL, node.number)
        answer = await self._do("EVAL", _HELLO, 2, *keys, *arguments)
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
        return await self._forwarder.forward(node_id, session, push)

    async def keep_alive(self, node_id: str, connection: str, frame: KeepAlive, ttl: float) -> bool:
        """Record that the node lives, for ``ttl`` seconds, and trim what it has read of its inbox.
        False if another connection is the node's by now."""
        keys = (
            redis_keys.relay_connection(node_id),
            redis_keys.keepalive(node_id),
            redis_keys.inbox(node_id),
        )
        state = await self._do(
            "EVAL",
            _KEEP_ALIVE,
            3,
            *keys,
            connection,
            frame.free_kv,
            round(1000 * ttl),
            INBOX_TTL,
            _next_entry_id(frame.after),
            self.settings.max_inbox_bytes,
        )
        if state == 2:
            log.warning("inbox_emptied", node_id=node_id)
        return bool(state)

    async def goodbye(self, node_id: str, connection: str) -> None:
        """The node has said that it goes: it does not count as alive any more, unless another
        connection is the node's by now."""
        keys = (redis_keys.relay_connection(node_id), redis_keys.keepalive(node_id))
        await self._do("EVAL", _GOODBYE, 2, *keys, connection)

    @asynccontextmanager
    async def blocking_connection(self) -> AsyncIterator[PipelinedConnection]:
        """A connection to Redis for commands that block: nobody else's wait behind them."""
        connection = self._idle.pop() if self._idle else PipelinedConnection(self._pool)
        try:
            yield connection
        except BaseException:  # also if the caller is cancelled: an answer is still to come
            await connection.close()
            raise
        self._idle.append(connection)

    async def read_inbox(
        self, connection: PipelinedConnection, node_id: str, after: str, wait: float
    ) -> list[InboxDelivery]:
        """What came for a node after the cursor, in as many deliveries as there have to be frames.
        Waits up to ``wait`` seconds if there is nothing yet."""
        inbox, block = redis_keys.inbox(node_id), block_ms(wait) or 1
        command = ("XREAD", "COUNT", ENTRIES_PER_READ, "BLOCK", block, "STREAMS", inbox, after)
        [answer] = await connection.call([command])
        if isinstance(answer, ResponseError):
            raise answer
        return _deliveries(answer[0][1]) if answer else []

    async def _do(self, *command: Any) -> Any:
        [answer] = await self._connection.call([command])
        if isinstance(answer, ResponseError):
            raise answer
        return answer


def _deliveries(entries: Sequence[tuple[bytes, list[bytes]]]) -> list[InboxDelivery]:
    """``entries``: IDs, and their fields' names and values in turn."""
    deliveries: list[InboxDelivery] = []
    size = MAX_FRAME_BYTES
    for entry_id, values in entries:
        fields = dict(zip(values[::2], values[1::2], strict=True))
        entry = InboxEntry(fields.get(wire.HEADER, b""), fields.get(wire.TENSOR, b""))
        after = entry_id.decode()
        added = len(entry.header) + len(entry.tensor) + DELIVERY_OVERHEAD
        if added > MAX_FRAME_BYTES:
            log.warning("message_too_large", bytes=added)  # its generation will be routed anew
            deliveries.append(InboxDelivery(after, []))
            size = MAX_FRAME_BYTES
        elif size + added > MAX_FRAME_BYTES:
            deliveries.append(InboxDelivery(after, [entry]))
            size = added
        else:
            deliveries[-1] = InboxDelivery(after, [*deliveries[-1].entries, entry])
            size += added
    return deliveries


def _next_entry_id(cursor: str) -> str:
    """The first ID after the cursor's."""
    if not is_cursor(cursor):
        return "0-0"
    milliseconds, _, sequence = cursor.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
