"""Who is alive: each node's last heartbeat, in Redis, gone after its time to live.

Rebuilt by the next heartbeats if Redis is lost; what must not be lost (wallets, spans) is in
Postgres.

A node has one record, whoever says to be it. Each registration of a node counts up, and whoever
registered last is the node: a record is never overwritten, kept alive or removed in the name of an
earlier registration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from redis.asyncio import Redis

from market.nodes.node import Node
from market.nodes.record_codec import FIELD_NAMES, to_text
from mesh import redis_keys

UNSAVED_TTL = 7 * 24 * 3600
"""Seconds for which the uptime of a node that died is kept, until it comes back."""


_ANNOUNCE = """
local known = redis.call('HGET', KEYS[1], 'registration')
if known and tonumber(known) > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""


async def put(redis: Redis, node: Node, *, ttl: float) -> bool:
    """Put a node on the routes, where it is for ``ttl`` seconds after this or its last beat.

    False, and nothing is done: it has registered again since.
    """
    record = [part for name in FIELD_NAMES for part in (name, to_text(getattr(node, name)))]
    milliseconds = round(ttl * 1000)
    written: int = await redis.eval(  # type: ignore[misc]
        _ANNOUNCE,
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
    """What the registry says to a heartbeat.

    ``state``: ``kept``; ``unknown``, if there is no record to keep alive; ``superseded``, if the
    node has registered again since. ``uptime``: seconds heard that are not in Postgres yet.
    """

    state: Literal["kept", "unknown", "superseded"]
    uptime: float = 0.0
    wallet_address: str = ""
    model_id: str = ""
    trusted: bool = False


# Whole milliseconds, for INCRBY: in Redis 6.2, INCRBYFLOAT in a script corrupts its memory, as it
# shrinks the arguments' array that scripts share.
_BEAT = """
local known = redis.call(
    'HMGET', KEYS[1], 'registration', 'last_seen', 'wallet_address', 'model_id', 'trusted')
local mine = tonumber(ARGV[1])
if not known[1] or tonumber(known[1]) < mine then return {'unknown', '0', '', '', '0'} end
if tonumber(known[1]) > mine then return {'superseded', '0', '', '', '0'} end
local heard = math.max(0, tonumber(ARGV[2]) - tonumber(known[2]))
redis.call('HSET', KEYS[1], 'last_seen', ARGV[2], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local uptime = redis.call('INCRBY', KEYS[2], math.floor(1000 * heard + 0.5))
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {'kept', uptime, known[3], known[4], known[5]}
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
    """Keep a node on the routes with what it has measured: one round trip.

    Its record is there only if the last beat is no longer than the TTL ago, so the time since then
    counts as uptime.

    Args:
        measured: Fields of :class:`Node`.
        now: Seconds since 1970.
    """
    changes = [part for name, value in measured.items() for part in (name, to_text(value))]
    milliseconds = round(ttl * 1000)
    state, uptime, wallet, model_id, trusted = await redis.eval(  # type: ignore[misc]
        _BEAT,
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
    )


async def unsaved_uptime(redis: Redis, node_id: str) -> float:
    """Seconds that a node was heard and that are not in Postgres yet."""
    return int(await redis.get(redis_keys.unsaved_uptime(node_id)) or 0) / 1000


async def mark_uptime_saved(redis: Redis, node_id: str, seconds: float) -> None:
    """So many of them are in Postgres now."""
    await redis.decrby(redis_keys.unsaved_uptime(node_id), round(1000 * seconds))


_FORGET = """
local known = redis.call('HGET', KEYS[1], 'registration')
if known and tonumber(known) > tonumber(ARGV[1]) then return 0 end
return redis.call('DEL', KEYS[1])
"""


async def evict(redis: Redis, node_id: str, model_id: str, registration: int = 2**31) -> None:
    """Take a node off the routes now; its next heartbeat, if there is one, puts it back.

    Args:
        registration: Only if it has not registered again since.
    """
    removed = await redis.eval(_FORGET, 1, redis_keys.node(node_id), str(registration))  # type: ignore[misc]
    if removed:
        await redis.srem(redis_keys.model_nodes(model_id), node_id)  # type: ignore[misc]


_MOVE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'start_layer', ARGV[1], 'end_layer', ARGV[2], 'edge', ARGV[3],
           'latency_ms', '0.0')
return 1
"""


async def change_span(redis: Redis, node_id: str, span: tuple[int, int], *, edge: bool) -> None:
    """Let routes count on another span of a node from now on, if it is on them at all. The latency
    that was measured is that of the span before: it is forgotten."""
    start, end = span
    await redis.eval(  # type: ignore[misc]
        _MOVE, 1, redis_keys.node(node_id), str(start), str(end), str(int(edge))
    )


async def cool_down(redis: Redis, node_id: str, *, seconds: float) -> None:
    """Give a node that failed no new generation for a while."""
    await redis.set(redis_keys.cooldown(node_id), 1, px=max(1, round(seconds * 1000)))
