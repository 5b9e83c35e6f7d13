"""The seam around arq: it only wakes workers. What must not be lost is in Postgres.

Poking twice is harmless: a task first asks Postgres whether there is anything to do.
"""

from typing import Any

import msgpack
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings

from mesh.redis_keys import WORKER_QUEUE, WORKER_WAKEUPS

BATCH = 100
"""Outbox rows sent in one transaction."""


def serialize(job: dict[str, Any]) -> bytes:
    """arq pickles by default; nothing here is ever unpickled."""
    packed: bytes = msgpack.packb(job, default=_plain)
    return packed


def deserialize(packed: bytes) -> dict[str, Any]:
    unpacked: dict[str, Any] = msgpack.unpackb(packed)
    return unpacked


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else str(value)


async def connect(redis_url: str) -> ArqRedis:
    """A connection to the workers' queue."""
    return await create_pool(
        RedisSettings.from_dsn(redis_url),
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=WORKER_QUEUE,
    )


async def enqueue(queue: ArqRedis, task: str, argument: str, *, once: str | None = None) -> None:
    """Wake a worker. Two pokes of the same ``once`` that wait at the same time are one."""
    await queue.enqueue_job(task, argument, _job_id=once)
    async with queue.pipeline(transaction=True) as pipe:
        pipe.lpush(WORKER_WAKEUPS, b"")
        pipe.ltrim(WORKER_WAKEUPS, 0, BATCH - 1)  # nobody listens: no reason to grow
        await pipe.execute()


async def wait_for_wakeup(queue: ArqRedis, seconds: int) -> bool:
    """Whether there was one. Each poke is heard by one listener; all others look on their own."""
    return await queue.blpop([WORKER_WAKEUPS], timeout=seconds) is not None  # type: ignore[misc]
