"""A paused supervisor, its lease lost, that begins an epoch after the end, or ends a newer one."""

from redis.asyncio import Redis

from market.jobs import live_session
from mesh import redis_keys, token_stream
from mesh.route_record import RouteRecord

ID, TTL = "request", 100
ROUTE = RouteRecord(8, 100, ["edge"])


async def begin(redis: Redis, epoch: int) -> bool:
    return await live_session.begin_epoch(redis, ID, epoch, ROUTE, ttl=TTL)


async def append(redis: Redis, epoch: int, index: int) -> int:
    keys = (redis_keys.live_record(ID), redis_keys.tokens(ID))
    written: int = await redis.eval(token_stream.APPEND_TOKEN, 2, *keys, epoch, index, 5, "x")
    return written


async def test_an_epoch_that_was_claimed_before_the_end_opens_nothing(redis: Redis) -> None:
    """Its successor has read the claim, and seals with it."""
    assert await begin(redis, 1)
    assert await append(redis, 1, 0) == 1
    assert len(await live_session.seal(redis, ID, 2, ttl=TTL)) == 1
    assert not await begin(redis, 2)
    assert [await append(redis, epoch, 1) for epoch in (1, 2)] == [-1, -1]
    assert await live_session.current_epoch(redis, ID) is None


async def test_an_end_that_failed_is_followed_by_a_newer_epoch(redis: Redis) -> None:
    """Its worker was killed between seal and bill."""
    assert await begin(redis, 1)
    await live_session.seal(redis, ID, 1, ttl=TTL)
    assert await begin(redis, 2)
    assert await append(redis, 2, 0) == 1


async def test_an_older_epoch_replaces_no_newer_one(redis: Redis) -> None:
    assert await begin(redis, 3)
    assert not await begin(redis, 2)
    assert not await begin(redis, 3)
    assert await live_session.current_epoch(redis, ID) == 3


async def test_who_knows_only_an_older_epoch_seals_no_newer_one(redis: Redis) -> None:
    assert await begin(redis, 2)
    await live_session.seal(redis, ID, 1, ttl=TTL)
    assert await append(redis, 2, 0) == 1


async def test_redis_that_has_lost_the_record_takes_the_next_epoch(redis: Redis) -> None:
    assert await begin(redis, 4)
    await redis.flushdb()
    assert await begin(redis, 5)
