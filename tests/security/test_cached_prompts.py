"""Prompts that are copied from caches, by which nodes would seem to compute faster than they do, so
that more is admitted than they can serve."""

import asyncio

from redis.asyncio import Redis

from market.jobs import messaging
from market.jobs.admission import throughput
from market.resources import Resources
from mesh import wire
from tests.support.jobs import write_tokens
from tests.support.market.supervision import served, wait_for_completion


async def test_what_was_copied_counts_toward_no_throughput(
    resources: Resources, redis: Redis
) -> None:
    async with served(resources, redis) as job:
        reused = wire.PrefixReused(job.request_id, 1, 2)
        await messaging.publish_event(redis, reused, sender="node_0")
        await asyncio.sleep(1)
        await write_tokens(redis, job, 1, 3)
        ended = wire.Ended(job.request_id, 1, "stop", 3)
        await messaging.publish_event(redis, ended, sender="node_0")
        await wait_for_completion(resources, job)
    counted = [int(await redis.get(key)) for key in await redis.keys("*throughput*")]
    assert sum(counted) == job.prompt_tokens - 2 + 3
    assert await throughput.throughput(redis, job.model_id) is not None
