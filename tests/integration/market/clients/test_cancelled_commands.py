"""A task that waits for Redis ends when it is cancelled, whatever it is just doing."""

import asyncio

from redis.asyncio import Redis

from market.clients.redis_client import open_redis


async def test_no_cancellation_is_lost(redis_url: str) -> None:
    client = open_redis(redis_url)

    async def work() -> None:
        while True:
            await client.ping()

    await client.ping()
    for steps in range(300):
        task = asyncio.create_task(work())
        for _ in range(steps % 60):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2)
        assert done, f"cancelled after {steps % 60} steps of the loop"
    assert await _answers_are_not_mixed_up(client)
    await client.aclose()


async def _answers_are_not_mixed_up(client: Redis) -> bool:
    return [await client.echo(str(number)) for number in range(20)] == [
        str(number).encode() for number in range(20)
    ]
