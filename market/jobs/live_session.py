"""A generation's streams in Redis: its tokens for readers, its events for the supervisor.

Why every reader sees each token exactly once, in order: token *i* is written with the explicit
stream ID ``i+1-0``, by a script that first compares the epoch and the length. A writer of an old
epoch is refused, and so is a second copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import structlog
from redis.asyncio import Redis

from mesh import redis_keys, wire
from mesh.errors import WireError
from mesh.route_record import EPOCH, ROUTE, LiveRoute, epoch_of

log = structlog.get_logger()

APPEND_TOKEN = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
local length = redis.call('XLEN', KEYS[2])
local index = tonumber(ARGV[2])
if index < length then return 0 end
if index > length then return -1 end
redis.call('XADD', KEYS[2], (index + 1) .. '-0', 'i', ARGV[3], 't', ARGV[4])
if index == 0 then
    local now = redis.call('TIME')
    redis.call('HSET', KEYS[1], 'first', now[1] .. '.' .. string.format('%06d', now[2]))
end
return 1
"""
"""1: written. 0: it was there already. -1: the writer's epoch is over; it must forget the
generation. Keys: live hash, token stream. Arguments: epoch, index, token id, text."""

_SEAL = """
redis.call('HSET', KEYS[1], 'epoch', 'sealed')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('XLEN', KEYS[2])
"""

START = "0-0"


@dataclass(frozen=True, slots=True)
class Delivered:
    """One token as readers see it. ``entry`` is the stream ID to resume after."""

    entry: str
    token_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The last entry of a stream: how the generation ended."""

    entry: str
    outcome: dict[str, Any]


def index_of(entry: str) -> int:
    """How many tokens a reader has seen who read up to this stream ID."""
    return int(entry.partition("-")[0])


async def begin_epoch(
    redis: Redis, request_id: str, epoch: int, route: LiveRoute, *, ttl: int
) -> None:
    """From here on only this epoch may append tokens, and its nodes send each other steps.
    ``ttl``: seconds."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hset(redis_keys.live(request_id), mapping={EPOCH: epoch, ROUTE: route.pack()})
        pipe.expire(redis_keys.live(request_id), ttl)
        pipe.expire(redis_keys.tokens(request_id), ttl)
        await pipe.execute()


async def current_epoch(redis: Redis, request_id: str) -> int | None:
    """The epoch that may write now; none if the record is gone or sealed."""
    return epoch_of(await redis.hget(redis_keys.live(request_id), EPOCH))  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Look:
    """How a generation stands: the epoch that may write (none if the record is gone or sealed),
    the number of tokens, and which of its nodes have a pulse."""

    epoch: int | None
    tokens: int
    beating: set[str]


async def look(redis: Redis, request_id: str, node_ids: Sequence[str]) -> Look:
    """All that a supervisor looks at, in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hget(redis_keys.live(request_id), EPOCH)
        pipe.xrevrange(redis_keys.tokens(request_id), count=1)
        for node_id in node_ids:
            pipe.exists(redis_keys.pulse(node_id))
        epoch, newest, *beats = await pipe.execute()
    return Look(
        epoch=epoch_of(epoch),
        tokens=index_of(newest[0][0].decode()) if newest else 0,
        beating={node_id for node_id, beat in zip(node_ids, beats, strict=True) if beat},
    )


async def first_token_at(redis: Redis, request_id: str) -> float | None:
    """When the first token was written (Unix time, Redis' clock)."""
    value = await redis.hget(redis_keys.live(request_id), "first")  # type: ignore[misc]
    return None if value is None else float(value)


async def seal(redis: Redis, request_id: str, *, ttl: int) -> int:
    """Let nobody append any more. Returns the number of tokens, which is now final."""
    count: int = await redis.eval(  # type: ignore[misc]
        _SEAL, 2, redis_keys.live(request_id), redis_keys.tokens(request_id), str(ttl)
    )
    return count


async def finish(redis: Redis, request_id: str, outcome: dict[str, Any], *, ttl: int) -> None:
    """Write the summary after the last token and let both streams expire after ``ttl`` seconds."""
    stream = redis_keys.tokens(request_id)
    last = await last_entry(redis, request_id)
    async with redis.pipeline(transaction=True) as pipe:
        if not last.endswith("-1"):
            # If Redis has lost tokens that the outcome counts, the entry's ID shows it to readers.
            pipe.xadd(stream, {"s": msgpack.packb(outcome)}, id=f"{index_of(last)}-1")
        pipe.expire(stream, ttl)
        pipe.expire(redis_keys.events(request_id), ttl)
        await pipe.execute()


async def last_entry(redis: Redis, request_id: str) -> str:
    """ID of the newest entry of the token stream, ``0-0`` if there is none."""
    newest = await redis.xrevrange(redis_keys.tokens(request_id), count=1)
    return newest[0][0].decode() if newest else START


async def read(
    redis: Redis, request_id: str, after: str, *, wait: float = 0
) -> list[Delivered | Summary]:
    """What follows the entry ``after``; waits up to ``wait`` seconds if there is nothing yet."""
    answer = await redis.xread({redis_keys.tokens(request_id): after}, block=_milliseconds(wait))
    if not answer:
        return []
    return [_entry(entry.decode(), fields) for entry, fields in answer[0][1]]


def _entry(entry: str, fields: dict[bytes, bytes]) -> Delivered | Summary:
    if b"s" in fields:
        return Summary(entry, msgpack.unpackb(fields[b"s"]))
    return Delivered(entry, int(fields[b"i"]), fields[b"t"].decode())


async def tell(redis: Redis, message: wire.Note, *, ttl: int = 3600) -> None:
    """Put a message among the events of its generation, which its supervisor reads."""
    key = redis_keys.events(message.request_id)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.xadd(key, wire.encode(message))  # type: ignore[arg-type]
        pipe.expire(key, ttl)
        await pipe.execute()


async def listen(
    redis: Redis, request_id: str, after: str, *, wait: float
) -> tuple[str, Sequence[wire.Note]]:
    """Events after an ID, waiting up to ``wait`` seconds; and the ID to go on from."""
    answer = await redis.xread({redis_keys.events(request_id): after}, block=_milliseconds(wait))
    if not answer:
        return after, []
    entries = answer[0][1]
    return entries[-1][0].decode(), [note for _, fields in entries for note in _note(fields)]


def _note(fields: dict[bytes, bytes]) -> list[wire.Note]:
    """The entry's message, or nothing: what another version or a stranger wrote stops nobody."""
    try:
        message = wire.decode(fields)
    except WireError as error:
        log.warning("message_refused", code=error.code, reason=error.detail)
        return []
    return [] if isinstance(message, wire.Steps) else [message]


async def send(redis: Redis, node_id: str, messages: Sequence[wire.Message], *, ttl: int) -> None:
    """Put messages into a node's inbox. ``ttl``: seconds after which an unread inbox is gone."""
    key = redis_keys.inbox(node_id)
    async with redis.pipeline(transaction=True) as pipe:
        for message in messages:
            pipe.xadd(key, wire.encode(message))  # type: ignore[arg-type]
        pipe.expire(key, ttl)
        await pipe.execute()


def _milliseconds(wait: float) -> int | None:
    """For BLOCK, where 0 would mean for ever."""
    return max(1, round(wait * 1000)) if wait else None
