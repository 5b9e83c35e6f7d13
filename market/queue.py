"""The task queue (arq), which only wakes workers: what must not be lost is in Postgres.

To enqueue a task twice is harmless: a task first asks Postgres whether there is anything to do.
"""

from typing import Any

import msgpack
from arq.connections import ArqRedis

from market.clients.redis_client import MAX_BLOCK, open_pool
from mesh.redis_keys import WORKER_QUEUE, WORKER_WAKEUPS

MAX_WAKEUPS = 100
"""Entries that the wake-up list keeps while no worker reads it."""


def serialize(task: dict[str, Any]) -> bytes:
    """arq pickles by default; nothing here is ever unpickled."""
    packed: bytes = msgpack.packb(task, default=_plain)
    return packed


def deserialize(packed: bytes) -> dict[str, Any]:
    unpacked: dict[str, Any] = msgpack.unpackb(packed)
    return unpacked


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else str(value)


def open_queue(redis_url: str) -> ArqRedis:
    """A client of the workers' queue, to be closed after use; connects when first used.

    arq's own way to connect, ``create_pool``, has no limit of the time that Redis may be silent.
    """
    queue = ArqRedis(
        open_pool(redis_url),
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=WORKER_QUEUE,
    )
    queue.auto_close_connection_pool = True
    return queue


async def enqueue(
    queue: ArqRedis, task: str, argument: str, *, dedup_key: str | None = None
) -> None:
    """Queue a task and wake a worker for it.

    Args:
        dedup_key: Of the tasks with one key that wait at a time, only the first is queued.
    """
    await queue.enqueue_job(task, argument, _job_id=dedup_key)
    async with queue.pipeline(transaction=True) as pipe:
        pipe.lpush(WORKER_WAKEUPS, b"")
        pipe.ltrim(WORKER_WAKEUPS, 0, MAX_WAKEUPS - 1)
        await pipe.execute()


async def wait_for_wakeup(queue: ArqRedis) -> bool:
    """Whether a task was enqueued within :data:`MAX_BLOCK` seconds. One task wakes one of the
    workers that wait; the others find it by polling the queue."""
    return await queue.blpop([WORKER_WAKEUPS], timeout=MAX_BLOCK) is not None  # type: ignore[misc]
