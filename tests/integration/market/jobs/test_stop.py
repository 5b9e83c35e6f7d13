"""A job that is stopped: what can be read after that, and that nothing can be added."""

from random import Random

import pytest
from redis.asyncio import Redis

from market.jobs import live_session, stop
from market.jobs.live_session import EndEntry, JobOutcome
from market.jobs.stop import Reader
from mesh import redis_keys, token_stream, wire
from mesh.route_record import RouteRecord

JOB = "req_stopped"
TTL = 60

OUTCOME: JobOutcome = {
    "status": "completed",
    "prompt_tokens": 3,
    "cached_prompt_tokens": 0,
    "total_tokens": 2,
    "cost_far": "0.0002",
    "latency_ms": 1,
    "time_to_first_token_ms": 1,
    "finish_reason": "cancelled",
    "error": None,
    "accepted_draft_tokens": 0,
    "rejected_draft_tokens": 0,
    "batch_invariant": True,
    "quantization": "none",
    "nodes_used": [],
}


async def begin(redis: Redis, epoch: int = 1) -> bool:
    route = RouteRecord(1, 1000, ["node_0"])
    return await live_session.begin_epoch(redis, JOB, epoch, route, ttl=TTL)


async def append(redis: Redis, index: int, epoch: int = 1) -> int:
    keys = (redis_keys.live_record(JOB), redis_keys.tokens(JOB))
    written: int = await redis.eval(  # type: ignore[misc]
        token_stream.APPEND_TOKEN, 2, *keys, str(epoch), str(index), "7", f"{index};"
    )
    return written


async def write(redis: Redis, count: int) -> None:
    assert await begin(redis)
    for index in range(count):
        assert await append(redis, index) == 1


async def note(redis: Redis, *readers: Reader) -> None:
    for reader in readers:
        await stop.note_reader(redis, JOB, reader, ttl=TTL)


async def texts(redis: Redis) -> list[str]:
    return [token.text for token in await live_session.tokens(redis, JOB)]


async def test_what_the_only_reader_was_not_sent_is_taken_back(redis: Redis) -> None:
    reader = Reader(sent=2)
    await note(redis, reader)
    await write(redis, 5)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert await texts(redis) == ["0;", "1;"]
    assert await live_session.last_entry_id(redis, JOB) == "2-0"


async def test_the_end_follows_the_last_token_that_is_left(redis: Redis) -> None:
    reader = Reader(sent=2)
    await note(redis, reader)
    await write(redis, 5)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    await live_session.seal(redis, JOB, 1, ttl=TTL)
    await live_session.finish(redis, JOB, OUTCOME, ttl=TTL)
    last = await live_session.last_entry(redis, JOB)
    assert isinstance(last, EndEntry)
    assert last.entry_id == "2-1"


async def test_the_first_token_stays(redis: Redis) -> None:
    """It shows that the prompt was computed."""
    reader = Reader()
    await note(redis, reader)
    await write(redis, 3)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert await texts(redis) == ["0;"]


async def test_without_a_token_nothing_is_there(redis: Redis) -> None:
    reader = Reader()
    await note(redis, reader)
    await write(redis, 0)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert await texts(redis) == []


@pytest.mark.parametrize("others", [(Reader(),), (Reader(), Reader())])
@pytest.mark.parametrize("first", [True, False])
async def test_where_another_reads_all_stays(
    redis: Redis, others: tuple[Reader, ...], first: bool
) -> None:
    reader = Reader(sent=1)
    await note(redis, *((*others, reader) if first else (reader, *others)))
    await write(redis, 4)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert len(await texts(redis)) == 4


async def test_one_reader_may_say_so_twice(redis: Redis) -> None:
    reader = Reader(sent=1)
    await note(redis, reader, reader)
    await write(redis, 4)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert len(await texts(redis)) == 1


@pytest.mark.parametrize("reader", [None, Reader(sent=1, lags=True), Reader(sent=1)])
async def test_all_stays_of_one_that_lags_is_unknown_or_only_asks(
    redis: Redis, reader: Reader | None
) -> None:
    if reader is not None and reader.lags:
        await note(redis, reader)
    await write(redis, 4)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert len(await texts(redis)) == 4


async def test_what_was_sealed_may_be_counted_already_and_stays(redis: Redis) -> None:
    reader = Reader(sent=1)
    await note(redis, reader)
    await write(redis, 4)
    sealed = await live_session.seal(redis, JOB, 1, ttl=TTL)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert len(await texts(redis)) == len(sealed) == 4


async def test_once_stopped_nothing_is_taken_back_any_more(redis: Redis) -> None:
    reader = Reader(sent=3)
    await note(redis, reader)
    await write(redis, 5)
    await stop.stop(redis, JOB, reader, ttl=TTL)
    reader.sent = 1
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert len(await texts(redis)) == 3


async def test_nobody_appends_and_no_epoch_begins(redis: Redis) -> None:
    await write(redis, 2)
    await stop.stop(redis, JOB, None, ttl=TTL)
    assert await append(redis, 2) == -1
    assert not await begin(redis, 2)
    assert await append(redis, 2, epoch=2) == -1
    progress = await live_session.progress(redis, JOB, ())
    assert (progress.cancelled, progress.epoch, progress.tokens) == (True, None, 2)


async def test_each_node_says_how_far_it_is_and_frees_its_kv_cache(redis: Redis) -> None:
    assert await begin(redis)
    route = RouteRecord(1, 1000, ["node_0", "node_1"])
    assert await live_session.begin_epoch(redis, JOB, 2, route, ttl=TTL)
    for _ in range(3):  # whoever says so again does not fill their inboxes
        await stop.stop(redis, JOB, None, ttl=TTL)
    for node_id in route.nodes:
        entries = await redis.xrange(redis_keys.inbox(node_id))
        assert [wire.decode(fields) for _, fields in entries] == [
            wire.Ping(JOB, 2),
            wire.Close(JOB, 2),
        ]


async def test_a_job_that_has_not_begun_never_does(redis: Redis) -> None:
    await stop.stop(redis, JOB, Reader(), ttl=TTL)
    assert not await begin(redis)
    assert await redis.ttl(redis_keys.live_record(JOB)) > 0
    assert await live_session.seal(redis, JOB, 0, ttl=TTL) == []


@pytest.mark.parametrize("seed", range(40))
async def test_nobody_reads_more_than_is_left(redis: Redis, seed: int) -> None:
    """Readers come, read and disconnect in any order. What is left when the job has ended is what
    is billed: nobody has more of it, and the one who stopped it has at least what he was sent."""
    random = Random(seed)
    written, stopped = 0, False
    owners = [Reader() for _ in range(random.choice([1, 1, 2]))]
    others: list[int] = []
    await note(redis, *owners)
    assert await begin(redis)
    for _ in range(60):
        match random.choice("wwwwsssro"):
            case "w":
                written += await append(redis, written) == 1
            case "s":
                reader = random.choice(owners)
                tokens = await live_session.tokens(redis, JOB, reader.sent, count=2)
                reader.sent = reader.taken = reader.sent + len(tokens)
            case "r" if not random.randrange(6):
                await note(redis, Reader())
                others.append(len(await texts(redis)))
            case "o" if not random.randrange(8) and not stopped:
                await stop.stop(redis, JOB, random.choice(owners), ttl=TTL)
                stopped = True
    left = len(await live_session.seal(redis, JOB, 1, ttl=TTL))
    assert all(read <= left for read in others)
    assert all(reader.sent <= left for reader in owners)
    if stopped and len(owners) == 1 and not others:
        assert left in {owners[0].sent, min(written, 1)}


async def test_what_is_left_of_a_stream_is_as_it_was(redis: Redis) -> None:
    reader = Reader(sent=2)
    await note(redis, reader)
    await write(redis, 4)
    keys = (redis_keys.live_record(JOB), redis_keys.tokens(JOB))
    await redis.eval(  # type: ignore[misc]
        token_stream.APPEND_TOKEN, 2, *keys, "1", "4", "7", "with a probability", b"\x00\xff"
    )
    reader.sent = 5
    await append(redis, 5)
    await redis.expire(keys[1], 1000)
    before = await redis.xrange(keys[1])
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert await redis.xrange(keys[1]) == before[:5]
    assert 900 < await redis.ttl(keys[1]) <= 1000


async def test_of_a_very_long_answer_all_stays(redis: Redis) -> None:
    reader = Reader(sent=stop.MAX_COPIED + 1)
    await note(redis, reader)
    await write(redis, 1)
    keys = redis_keys.tokens(JOB)
    async with redis.pipeline(transaction=False) as pipe:
        for index in range(1, stop.MAX_COPIED + 5):
            pipe.xadd(keys, {"i": 7, "t": "x"}, id=f"{index + 1}-0")
        await pipe.execute()
    await stop.stop(redis, JOB, reader, ttl=TTL)
    assert await redis.xlen(keys) == stop.MAX_COPIED + 5
