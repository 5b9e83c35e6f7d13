"""The measured throughput of a model."""

import pytest
from redis.asyncio import Redis

from market.jobs.admission import throughput
from market.jobs.admission.throughput import HALF_LIFE, SLOT_SECONDS, SLOTS
from mesh import redis_keys


class Clock:
    """The time that the module under test sees."""

    def __init__(self) -> None:
        self.now = 1_000_000.0 * SLOT_SECONDS

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throughput, "time", made)
    return made


async def test_nothing_computed_is_nothing_measured(redis: Redis) -> None:
    assert await throughput.throughput(redis, "model") is None


async def test_all_that_is_counted_in_a_slot_adds_up(redis: Redis, clock: Clock) -> None:
    for positions in (40, 60):
        await throughput.count(redis, "model", positions)
        clock.now += 1
    assert await throughput.throughput(redis, "model") == 100 / SLOT_SECONDS
    assert await throughput.throughput(redis, "another") is None


async def test_a_quiet_time_does_not_look_like_slow_nodes(redis: Redis, clock: Clock) -> None:
    await throughput.count(redis, "model", 1000)
    clock.now += SLOT_SECONDS
    await throughput.count(redis, "model", 1)
    measured = await throughput.throughput(redis, "model")
    assert measured == pytest.approx(1000 / SLOT_SECONDS * 0.5 ** (SLOT_SECONDS / HALF_LIFE))


async def test_what_was_possible_long_ago_counts_less(redis: Redis, clock: Clock) -> None:
    await throughput.count(redis, "model", 1000)
    clock.now += HALF_LIFE
    measured = await throughput.throughput(redis, "model")
    assert measured == pytest.approx(500 / SLOT_SECONDS)
    clock.now += SLOTS * SLOT_SECONDS
    assert await throughput.throughput(redis, "model") is None


async def test_slots_expire_by_themselves(redis: Redis, clock: Clock) -> None:
    await throughput.count(redis, "model", 1000)
    key = redis_keys.throughput("model", int(clock.now // SLOT_SECONDS))
    assert 0 < await redis.ttl(key) <= SLOTS * SLOT_SECONDS
