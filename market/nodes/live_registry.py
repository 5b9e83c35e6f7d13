"""Which nodes are alive: the last heartbeat of each, in Redis, gone after its TTL.

Rebuilt by the next heartbeats if Redis is lost; what must not be lost (wallets, spans) is in
Postgres.

A node has one record. Each registration of a node counts up, and whoever registered last is the
node: a record is never overwritten, kept alive or removed in the name of an earlier registration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from redis.asyncio import Redis

from market.nodes.node import Node
from market.nodes.record_codec import FIELD_NAMES, to_text
from mesh import redis_keys

UNSAVED_TTL = 7 * 24 * 3600
"""Seconds for which the uptime of a node that is gone is kept, in case it comes back."""


_PUT = """
local known = redis.call('HGET', KEYS[1], 'registration')
if known and tonumber(known) > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""


async def put(redis: Redis, node: Node, *, ttl: float) -> bool:
    """Let routes use a node, until ``ttl`` seconds after this or its last heartbeat; false, and
    nothing is done, if the node has registered again since."""
    record = [part for name in FIELD_NAMES for part in (name, to_text(getattr(node, name)))]
    milliseconds = round(ttl * 1000)
    written: int = await redis.eval(  # type: ignore[misc]
        _PUT,
        1,
        redis_keys.node(node.node_id),
        str(node.registration),
        str(milliseconds),
        *record,
    )
    if written:
        await redis.sadd(redis_keys.model_nodes(node.model_id), node.node_id)  # type: ignore[misc]
    return bool(written)


@dataclass(frozen=True, slots=True)
class HeartbeatResult:
    """What became of a heartbeat.

    ``state``: ``kept``; ``unknown``, if there is no record to keep alive; ``superseded``, if the
    node has registered again since. ``uptime``: seconds of uptime that are not in Postgres yet.
    """

    state: Literal["kept", "unknown", "superseded"]
    uptime: float = 0.0
    wallet_address: str = ""
    model_id: str = ""
    trusted: bool = False
    by_machine: bool = False


# Whole milliseconds, for INCRBY: in Redis 6.2, INCRBYFLOAT in a script corrupts its memory, as it
# shrinks the arguments' array that scripts share.
_HEARTBEAT = """
local known = redis.call(
    'HMGET', KEYS[1], 'registration', 'last_seen', 'wallet_address', 'model_id', 'trusted',
    'by_machine')
local mine = tonumber(ARGV[1])
if not known[1] or tonumber(known[1]) < mine then return {'unknown', '0', '', '', '0', '0'} end
if tonumber(known[1]) > mine then return {'superseded', '0', '', '', '0', '0'} end
local heard = math.max(0, tonumber(ARGV[2]) - tonumber(known[2]))
redis.call('HSET', KEYS[1], 'last_seen', ARGV[2], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local uptime = redis.call('INCRBY', KEYS[2], math.floor(1000 * heard + 0.5))
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {'kept', uptime, known[3], known[4], known[5], known[6] or '0'}
"""


async def record_heartbeat(
    redis: Redis,
    node_id: str,
    registration: int,
    measured: Mapping[str, Any],
    *,
    now: float,
    ttl: float,
) -> HeartbeatResult:
    """Keep a node alive with what it has measured, in one round trip.

    A record exists only if the last heartbeat is no longer ago than the TTL, so the time since then
    counts as uptime.

    Args:
        registration: The registration that the heartbeat was sent under.
        measured: New values of fields of :class:`Node`.
        now: Unix time.
        ttl: Seconds that the record lasts.
    """
    changes = [part for name, value in measured.items() for part in (name, to_text(value))]
    milliseconds = round(ttl * 1000)
    state, uptime, wallet, model_id, trusted, by_machine = await redis.eval(  # type: ignore[misc]
        _HEARTBEAT,
        2,
        redis_keys.node(node_id),
        redis_keys.unsaved_uptime(node_id),
        str(registration),
        str(now),
        str(milliseconds),
        str(UNSAVED_TTL),
        *changes,
    )
    return HeartbeatResult(
        state=state.decode(),
        uptime=int(uptime) / 1000,
        wallet_address=wallet.decode(),
        model_id=model_id.decode(),
        trusted=trusted == b"1",
        by_machine=by_machine == b"1",
    )


async def unsaved_uptime(redis: Redis, node_id: str) -> float:
    """Seconds of a node's uptime that are not in Postgres yet."""
    return int(await redis.get(redis_keys.unsaved_uptime(node_id)) or 0) / 1000


async def mark_uptime_saved(redis: Redis, node_id: str, seconds: float) -> None:
    """Take off the uptime of a node what is in Postgres now."""
    await redis.decrby(redis_keys.unsaved_uptime(node_id), round(1000 * seconds))


_EVICT = """
local known = redis.call('HGET', KEYS[1], 'registration')
if known and tonumber(known) > tonumber(ARGV[1]) then return 0 end
return redis.call('DEL', KEYS[1])
"""


async def evict(redis: Redis, node_id: str, model_id: str, registration: int = 2**31) -> None:
    """Take a node off the routes now; its next heartbeat, if there is one, puts it back.

    Args:
        registration: The node stays if it has registered again since this registration.
    """
    removed = await redis.eval(_EVICT, 1, redis_keys.node(node_id), str(registration))  # type: ignore[misc]
    if removed:
        await redis.srem(redis_keys.model_nodes(model_id), node_id)  # type: ignore[misc]


_CHANGE_SPAN = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'start_layer', ARGV[1], 'end_layer', ARGV[2], 'edge', ARGV[3],
           'latency_ms', '0.0')
return 1
"""


async def change_span(redis: Redis, node_id: str, span: tuple[int, int], *, edge: bool) -> None:
    """Let routes use another span of a live node from now on. The measured latency, which is that
    of the span before, is dropped."""
    start, end = span
    await redis.eval(  # type: ignore[misc]
        _CHANGE_SPAN, 1, redis_keys.node(node_id), str(start), str(end), str(int(edge))
    )
