"""The end of a job that its user does not want any more, in Redis: no token after it, at once, and
no KV cache for it on any node.

Whoever is about to read a running job's tokens says so first (:func:`note_reader`). So the tokens
that a job's only reader was not sent can be taken back when he disconnects: nobody has seen them,
and nobody can any more. What can be read is what is billed.
"""

import asyncio
import secrets
from dataclasses import dataclass, field

from redis.asyncio import Redis

from market.jobs import messaging
from mesh import redis_keys
from mesh.route_record import CANCELLED, ROUTE, RouteRecord
from mesh.wire import Close, Message, Ping

MAX_COPIED = 4096
"""Tokens that are left, at most, when those after them are taken back: some 20 ms of Redis' time.
Of a longer answer all stays."""

SEVERAL = "several"
"""In the place of a reader's name."""


@dataclass(slots=True)
class Reader:
    """Who reads a running job's tokens.

    Attributes:
        name: That nobody else has.
        taken: Tokens that he has been given.
        sent: Those of them that have gone out to his client.
        lags: Whether what he was given waits until his client takes in what was sent before. Such a
            client lets more be generated than it reads, and pays for all of it.
    """

    name: str = field(default_factory=lambda: secrets.token_hex(8))
    taken: int = 0
    sent: int = 0
    lags: bool = False


_NOTE_READER = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[2])
end
"""

_STOP = f"""
local over = redis.call('HGET', KEYS[1], 'epoch') == 'sealed'
local served = redis.call('HMGET', KEYS[1], 'newest', '{ROUTE}')
redis.call('HSET', KEYS[1], 'epoch', 'sealed', '{CANCELLED}', '1')
redis.call('EXPIRE', KEYS[1], ARGV[1])
if over then return end
if ARGV[2] == '' or redis.call('GET', KEYS[3]) ~= ARGV[2] then return served end
local kept = math.max(tonumber(ARGV[3]), 1)
if kept > {MAX_COPIED} or redis.call('XLEN', KEYS[2]) <= kept then return served end
local ttl = redis.call('PTTL', KEYS[2])
local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', kept)
redis.call('DEL', KEYS[2])
for _, entry in ipairs(entries) do redis.call('XADD', KEYS[2], entry[1], unpack(entry[2])) end
if ttl > 0 then redis.call('PEXPIRE', KEYS[2], ttl) end
return served
"""
"""Gives the epoch and the route that it has ended. What was sealed before may have been counted for
the bill already, and is left as it is; whoever sealed it lets the nodes go. The
first token is kept: it shows that the prompt was computed, which is paid for. The stream is made
anew, since the end has to follow its last entry, and Redis lets no ID follow that of an entry that
was deleted unless it is greater."""


async def note_reader(redis: Redis, request_id: str, reader: Reader, *, ttl: int) -> None:
    """Say that somebody is going to read a running job's tokens.

    Args:
        redis: Where the tokens are.
        request_id: The job.
        reader: Who.
        ttl: Seconds for which that is known; after that nothing is taken back.
    """
    key = redis_keys.sole_reader(request_id)
    await redis.eval(_NOTE_READER, 1, key, reader.name, str(ttl), SEVERAL)  # type: ignore[misc]


async def stop(redis: Redis, request_id: str, reader: Reader | None, *, ttl: int) -> None:
    """Let nobody append tokens any more, and no epoch begin; let the nodes of the route free what
    they hold, once they have said how much of the prompt they have computed. The supervisor finds
    the job cancelled. May be called again, and at any time.

    Args:
        redis: Where the tokens are.
        request_id: The job.
        reader: Who has disconnected. If nobody else reads, the tokens that he was not sent are
            taken back, but for the first of all.
        ttl: Seconds for which the live record is kept: at least until the job's deadline.
    """
    name, sent = (reader.name, reader.sent) if reader and not reader.lags else ("", 0)
    keys = (
        redis_keys.live_record(request_id),
        redis_keys.tokens(request_id),
        redis_keys.sole_reader(request_id),
    )
    served = await redis.eval(_STOP, 3, *keys, str(ttl), name, str(sent))  # type: ignore[misc]
    epoch, packed = served or (None, None)
    route = RouteRecord.unpack(packed)
    if epoch is None or route is None:
        return
    last: list[Message] = [Ping(request_id, int(epoch)), Close(request_id, int(epoch))]
    await asyncio.gather(
        *(messaging.send_to_inbox(redis, node_id, last, ttl=ttl) for node_id in route.nodes)
    )
