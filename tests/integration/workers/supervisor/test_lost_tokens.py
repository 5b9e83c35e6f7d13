"""Redis loses tokens before they are stored: what can be read decides how the job ends."""

from decimal import Decimal

import pytest
from redis.asyncio import Redis

from market.jobs import cancellation, live_session, messaging
from market.jobs.live_session import TokenEntry
from market.jobs.reading.stored_tokens import StoredTokensReader
from market.jobs.tables import Job
from market.resources import Resources
from mesh import redis_keys, wire
from tests.support.factories import token_entries
from tests.support.jobs import opened_requests, reload, until, write_tokens
from tests.support.market.supervision import balances, served, wait_for_completion

PRICE = Decimal("0.0001")


async def lose(redis: Redis, job: Job) -> None:
    """All that Redis has of a generation, as after a crash."""
    await redis.delete(
        redis_keys.tokens(job.request_id),
        redis_keys.live_record(job.request_id),
        redis_keys.events(job.request_id),
    )


async def end(redis: Redis, job: Job, epoch: int, tokens: int) -> None:
    """The edge writes its tokens and says that it has ended."""
    await write_tokens(redis, job, epoch, tokens)
    ended = wire.Ended(job.request_id, epoch, "stop", tokens)
    await messaging.publish_event(redis, ended, sender="node_0")


async def stored(resources: Resources, job: Job) -> list[TokenEntry]:
    return await StoredTokensReader(resources.sessions, resources.vault).all(job.request_id)


async def test_what_is_lost_between_the_end_and_its_transaction_is_generated_again(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = live_session.seal

    async def lose_and_seal(
        redis: Redis, request_id: str, epoch: int, *, ttl: int
    ) -> list[TokenEntry]:
        monkeypatch.setattr(live_session, "seal", seal)
        await lose(redis, job)
        return await seal(redis, request_id, epoch, ttl=ttl)

    async with served(resources, redis) as job:
        monkeypatch.setattr(live_session, "seal", lose_and_seal)
        await end(redis, job, 1, 3)

        async def is_open_again() -> bool:
            return len(await opened_requests(redis)) == 2

        await until(is_open_again)
        assert await balances(resources, job) == (0, job.hold_far)
        await end(redis, job, 2, 3)
        await wait_for_completion(resources, job)
    assert (await reload(resources, job)).token_count == 3
    assert await stored(resources, job) == token_entries(3)
    assert await balances(resources, job) == (job.hold_far - 3 * PRICE, 0)


async def test_what_is_lost_before_a_cancellation_is_not_charged(
    resources: Resources, redis: Redis
) -> None:
    """Nobody can read it."""
    async with served(resources, redis) as job:
        await write_tokens(redis, job, 1, 3)
        await lose(redis, job)
        await cancellation.cancel(resources, job)
        await wait_for_completion(resources, job)
    assert (await reload(resources, job)).token_count == 0
    assert await stored(resources, job) == []
    assert await balances(resources, job) == (job.hold_far, 0)
