"""What the relay does for a node, however it is connected: takes its hello, forwards what it sends,
reads its inbox, and records its keep-alives."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from api.relay.forwarder import Forwarder
from api.relay.pipelined_connection import PipelinedConnection
from api.relay.quotas.connection_slots import ConnectionSlots
from api.relay.quotas.delivered_nodes import DeliveredNodes
from api.relay.quotas.inbox_sizes import UNREAD_TTL, InboxSize, InboxSizes
from api.relay.quotas.throttle import NodeRate, NodeThrottle
from api.relay.quotas.wallets import NodeWallets
from api.server.transfers import TransferBudget
from market.clients.redis_client import block_ms
from market.db import Sessions
from market.nodes.node import NodeIncarnation
from market.settings.relay import RelaySettings
from mesh import redis_keys, wire
from mesh.errors import WireError
from mesh.relay import (
    MAX_FRAME_BYTES,
    VERSION,
    Frame,
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

READ_BYTES = 2**22
"""Of the entries that are read at once, if there are several."""

KEEPALIVES_PER_SECOND = 10.0
KEEPALIVE_BURST = 20
"""Keep-alives of a node that are recorded: it sends four a second, and several at once if its link
was slow."""

MAX_IDLE_CONNECTIONS = 64
"""To Redis, kept for commands that block: more than nodes come and go at once."""

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
if owner and owner ~= ARGV[1] then return {0, 0} end
if not owner then redis.call('HSET', KEYS[1], 'connection', ARGV[1]) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if redis.call('XLEN', KEYS[3]) == 0 then return {1, 0} end
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[5])
if redis.call('XLEN', KEYS[3]) == 0 then
    redis.call('EXPIRE', KEYS[3], ARGV[4])
    return {1, 0}
end
redis.call('EXPIRE', KEYS[3], ARGV[7])
if ARGV[8] == '0' then return {1, -1} end
local bytes = redis.call('MEMORY', 'USAGE', KEYS[3], 'SAMPLES', 0) or 0
if bytes <= tonumber(ARGV[6]) then return {1, bytes} end
redis.call('XTRIM', KEYS[3], 'MAXLEN', 0)
return {2, 0}
"""
"""1: alive. 0: another connection is the node's by now. 2: alive, and its inbox, which it does not
read, was emptied. And the bytes of what it has not read; -1: they were not measured. Keys: relay
connection, keep-alive, inbox. Arguments: connection, free positions of the KV cache, milliseconds
to live of the keep-alive, seconds to live of the inbox, first entry to keep, bytes of the inbox at
most, seconds to live of the inbox while something in it is unread, 1 to measure it, else 0."""

_GOODBYE = """
if redis.call('HGET', KEYS[1], 'connection') == ARGV[1] then redis.call('DEL', KEYS[2]) end
"""
"""Keys: relay connection, keep-alive. Arguments: connection."""


class RelayHub:
    """One a process. All methods raise ``RedisError`` if Redis does not answer; the node then tries
    again, at any replica."""

    def __init__(
        self,
        pool: ConnectionPool,
        settings: RelaySettings,
        transfers: TransferBudget,
        sessions: Sessions,
    ) -> None:
        self.settings = settings
        self.transfers = transfers
        self.throttle = NodeThrottle(settings.messages_per_second, settings.bytes_per_second)
        self._keep_alives = NodeRate(KEEPALIVES_PER_SECOND, KEEPALIVE_BURST)
        self._pool = pool
        self._connection = PipelinedConnection(pool)
        self.delivered = DeliveredNodes(self._connection)
        self.slots = ConnectionSlots(settings, self.delivered)
        self.wallets = NodeWallets(sessions)
        self._idle: list[PipelinedConnection] = []
        self._inboxes = InboxSizes(self._connection, settings)
        self._forwarder = Forwarder(self._connection, settings, self._inboxes, self.throttle)

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
        False if another connection is the node's by now. Too many at once are not recorded: the
        one before is hardly older."""
        if not self._keep_alives.take(node_id):
            return True
        keys = (
            redis_keys.relay_connection(node_id),
            redis_keys.keepalive(node_id),
            redis_keys.inbox(node_id),
        )
        state, unread = await self._do(
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
            UNREAD_TTL,
            int(self._inboxes.is_due(node_id)),
        )
        if state == 2:
            log.warning("inbox_emptied", node_id=node_id, reason="inbox_full")
        if unread >= 0:
            await self._inboxes.note(InboxSize(node_id, unread))
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
        if len(self._idle) < MAX_IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            await connection.close()

    async def read_inbox(
        self,
        connection: PipelinedConnection,
        node_id: str,
        after: str,
        wait: float,
        *,
        count: int = ENTRIES_PER_READ,
    ) -> list[InboxDelivery]:
        """What came for a node after the cursor, in as many deliveries as there have to be frames.
        Waits up to ``wait`` seconds if there is nothing yet. ``count``: entries at most, see
        :func:`next_count`."""
        inbox, block = redis_keys.inbox(node_id), block_ms(wait) or 1
        command = ("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", inbox, after)
        [answer] = await connection.call([command])
        if isinstance(answer, ResponseError):
            raise answer
        if not answer:
            return []
        self.delivered.add(node_id)
        return _deliveries(answer[0][1])

    async def _do(self, *command: Any) -> Any:
        [answer] = await self._connection.call([command])
        if isinstance(answer, ResponseError):
            raise answer
        return answer


def message_count(frame: Frame) -> int:
    """How many messages a frame of a node counts for: one at least, whatever is in it."""
    return max(1, len(frame.messages)) if isinstance(frame, Push) else 1


def size_of(delivery: InboxDelivery) -> int:
    """Bytes that a delivery takes up until its node has read it."""
    return DELIVERY_OVERHEAD + sum(
        len(entry.header) + len(entry.tensor) for entry in delivery.entries
    )


def next_count(deliveries: Sequence[InboxDelivery]) -> int:
    """How many entries to read next, by the longest of those that were read: a node that takes in
    little has to leave what is long in Redis."""
    longest = max(
        (len(entry.header) + len(entry.tensor) for each in deliveries for entry in each.entries),
        default=0,
    )
    return max(1, min(ENTRIES_PER_READ, READ_BYTES // max(1, longest)))


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
