"""A running job in Redis: the epoch that may write, its tokens, and how it ended.

Why every reader sees each token exactly once, in order: token *i* is written with the explicit
stream ID ``i+1-0``, by a script that first compares the epoch and the length. A writer of an old
epoch is refused, and so is a second copy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import msgpack
from redis.asyncio import Redis

from market.clients.redis_client import block_ms
from mesh import redis_keys
from mesh.route_record import CANCELLED, EPOCH, RouteRecord, epoch_of
from mesh.token_stream import START, token_count_at

TOKENS_PER_READ = 256
"""Tokens that are read at once of a long text."""

_NEWEST = """
local newest = redis.call('HGET', KEYS[1], 'newest') or redis.call('HGET', KEYS[1], 'epoch')
newest = tonumber(newest) or -1
"""
"""The newest epoch that was begun or sealed; -1 if the record is gone. Epochs are claimed in
Postgres under the newest lease, so that whoever has an older one has lost his lease since."""

_BEGIN = f"""{_NEWEST}
if tonumber(ARGV[1]) <= newest or redis.call('HEXISTS', KEYS[1], '{CANCELLED}') == 1 then
    return 0
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'newest', ARGV[1], 'route', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""

_SEAL = f"""{_NEWEST}
if tonumber(ARGV[1]) >= newest then
    redis.call('HSET', KEYS[1], 'epoch', 'sealed', 'newest', ARGV[1])
    redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return 1
"""


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token of a stream. ``entry_id``: the stream ID after which a reader resumes.
    ``logprobs``: packed (:mod:`mesh.wire.logprobs`); empty if nobody asked for them."""

    entry_id: str
    token_id: int
    text: str
    logprobs: bytes = b""


class ServedLayers(TypedDict):
    """A node that served a generation, and the layers that it served."""

    node_id: str
    layers: list[int]


class JobOutcome(TypedDict):
    """How a job ended, as the last entry of its token stream has it (§7.1 of the specification).

    ``cost_far``: exact, as text. ``error``: code of the failure; none if the job did not fail.
    ``batch_invariant``, ``quantization``: how it was computed; none if it never began.
    """

    status: str
    prompt_tokens: int
    cached_prompt_tokens: int
    total_tokens: int
    cost_far: str
    latency_ms: int | None
    time_to_first_token_ms: int | None
    finish_reason: str | None
    error: str | None
    accepted_draft_tokens: int
    rejected_draft_tokens: int
    batch_invariant: bool | None
    quantization: str | None
    nodes_used: list[ServedLayers]


@dataclass(frozen=True, slots=True)
class EndEntry:
    """The last entry of a stream, under ``entry_id``: how the generation ended."""

    entry_id: str
    outcome: JobOutcome


async def begin_epoch(
    redis: Redis, request_id: str, epoch: int, route: RouteRecord, *, ttl: int
) -> bool:
    """Let only the nodes of this epoch append tokens and send each other steps from now on, unless
    this epoch or a newer one was begun or sealed before, or the user has cancelled. ``ttl``:
    seconds for which the generation's record and tokens are kept. Returns whether the epoch has
    begun."""
    begun: int = await redis.eval(  # type: ignore[misc]
        _BEGIN,
        2,
        redis_keys.live_record(request_id),
        redis_keys.tokens(request_id),
        str(epoch),
        route.pack(),  # type: ignore[arg-type]
        str(ttl),
    )
    return bool(begun)


async def current_epoch(redis: Redis, request_id: str) -> int | None:
    """The epoch that may write now; none if the record is gone or sealed."""
    return epoch_of(await redis.hget(redis_keys.live_record(request_id), EPOCH))  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class GenerationProgress:
    """How far a generation is: the epoch that may write (none if the record is gone or sealed),
    whether the user has cancelled, the number of tokens, and those of the nodes asked for whose
    keep-alive has not expired."""

    epoch: int | None
    cancelled: bool
    tokens: int
    responding: set[str]


async def progress(redis: Redis, request_id: str, node_ids: Sequence[str]) -> GenerationProgress:
    """What a supervisor polls, in one round trip. ``node_ids``: nodes of the route."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(redis_keys.live_record(request_id), [EPOCH, CANCELLED])
        pipe.xrevrange(redis_keys.tokens(request_id), count=1)
        for node_id in node_ids:
            pipe.exists(redis_keys.keepalive(node_id))
        (epoch, cancelled), newest, *keepalives = await pipe.execute()
    return GenerationProgress(
        epoch=epoch_of(epoch),
        cancelled=cancelled is not None,
        tokens=token_count_at(newest[0][0].decode()) if newest else 0,
        responding={node_id for node_id, alive in zip(node_ids, keepalives, strict=True) if alive},
    )


async def first_token_at(redis: Redis, request_id: str) -> float | None:
    """When the first token was written (Unix time, Redis' clock)."""
    value = await redis.hget(redis_keys.live_record(request_id), "first")  # type: ignore[misc]
    return None if value is None else float(value)


async def seal(redis: Redis, request_id: str, epoch: int, *, ttl: int) -> list[TokenEntry]:
    """Let nobody append tokens any more until a newer epoch begins; returns all that can be read,
    which is final if the job ends now. Does nothing if a newer epoch has begun: then the caller has
    lost his lease. ``epoch``: the newest that the caller knows. ``ttl``: seconds for which the
    record is kept."""
    await redis.eval(  # type: ignore[misc]
        _SEAL,
        1,
        redis_keys.live_record(request_id),
        str(epoch),
        str(ttl),
    )
    return await tokens(redis, request_id)


async def finish(redis: Redis, request_id: str, outcome: JobOutcome, *, ttl: int) -> None:
    """Write how the generation ended after its last token, unless that was done, and let its tokens
    and events expire after ``ttl`` seconds."""
    stream = redis_keys.tokens(request_id)
    last = await last_entry_id(redis, request_id)
    async with redis.pipeline(transaction=True) as pipe:
        if not last.endswith("-1"):
            # If Redis has lost tokens that the outcome counts, the entry's ID shows it to readers.
            pipe.xadd(stream, {"s": msgpack.packb(outcome)}, id=f"{token_count_at(last)}-1")
        pipe.expire(stream, ttl)
        pipe.expire(redis_keys.events(request_id), ttl)
        await pipe.execute()


async def last_entry_id(redis: Redis, request_id: str) -> str:
    """ID of the newest entry of the token stream, ``0-0`` if there is none."""
    newest = await last_entry(redis, request_id)
    return newest.entry_id if newest else START


async def last_entry(redis: Redis, request_id: str) -> TokenEntry | EndEntry | None:
    """The newest entry of the token stream; none if there is none."""
    newest = await redis.xrevrange(redis_keys.tokens(request_id), count=1)
    return _entry(*newest[0]) if newest else None


async def read(
    redis: Redis, request_id: str, after: str, *, wait: float = 0, count: int | None = None
) -> list[TokenEntry | EndEntry]:
    """Entries after the ID ``after``, at most ``count`` of them; waits up to ``wait`` seconds if
    there are none yet."""
    stream = redis_keys.tokens(request_id)
    answer = await redis.xread({stream: after}, count=count, block=block_ms(wait))
    return entries_of(answer[0][1]) if answer else []


async def tokens(
    redis: Redis, request_id: str, after: int = 0, *, count: int | None = None
) -> list[TokenEntry]:
    """The tokens after so many, at most ``count`` of them; a long text is read in pieces, between
    which the process does other work."""
    found: list[TokenEntry] = []
    while count is None or len(found) < count:
        wanted = TOKENS_PER_READ if count is None else min(count - len(found), TOKENS_PER_READ)
        entries = await read(redis, request_id, f"{after + len(found)}-0", count=wanted)
        found += [entry for entry in entries if isinstance(entry, TokenEntry)]
        if len(entries) < wanted or isinstance(entries[-1], EndEntry):
            break
    return found


def entries_of(raw: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[TokenEntry | EndEntry]:
    """Entries of a token stream as Redis gives them, parsed."""
    return [_entry(entry_id, fields) for entry_id, fields in raw]


def _entry(raw_id: bytes, fields: dict[bytes, bytes]) -> TokenEntry | EndEntry:
    entry_id = raw_id.decode()
    if b"s" in fields:
        return EndEntry(entry_id, msgpack.unpackb(fields[b"s"]))
    return TokenEntry(entry_id, int(fields[b"i"]), fields[b"t"].decode(), fields.get(b"p", b""))
