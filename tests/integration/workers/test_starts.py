"""Workers and gateways that start beside waiting jobs, or before Redis and Postgres do."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select
from structlog.testing import capture_logs

from api.app import create_app
from market import queue
from market.jobs import queries
from market.jobs.tables import Job
from market.resources import Resources, open_resources
from market.settings import Settings
from mesh.redis_keys import WORKER_QUEUE
from stack.servers import free_port, redis_command, wait_for_redis
from tests.support.jobs import reload, submit, until
from workers.worker import supervision_worker, work

STARTS, WAITING = 5, 3


@asynccontextmanager
async def running(task: asyncio.Task[None]) -> AsyncIterator[None]:
    """The task, which has to run until the end."""
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# A worker that is stopped in the middle of a transaction leaves redis-py's client of it unclosed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_worker_that_starts_while_jobs_wait_takes_them(
    resources: Resources, redis: Redis
) -> None:
    """Tasks and wake-ups are there before its first look, each time."""
    for start in range(1, STARTS + 1):
        jobs = [await submit(resources) for _ in range(WAITING)]
        for job in jobs:
            await queue.enqueue(resources.queue, queries.SUPERVISE, job.request_id)
        worker = supervision_worker(resources)

        async def all_taken(start: int = start) -> bool:
            async with resources.sessions() as db:
                taken = select(func.count()).select_from(Job).where(Job.lease_counter > 0)
                return await db.scalar(taken) == start * WAITING

        async with running(asyncio.create_task(worker.main())):
            await until(all_taken)
        await worker.stop()
        await redis.delete(WORKER_QUEUE)  # where arq has put back what was stopped


@contextmanager
def redis_server(port: int, folder: Path) -> Iterator[None]:
    process = subprocess.Popen(redis_command(port, folder))
    try:
        wait_for_redis(port)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_worker_that_starts_before_redis_says_so_and_works_when_it_comes(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    port = free_port()
    settings = make_settings(redis_url=f"redis://127.0.0.1:{port}/0")
    async with open_resources(settings) as opened:
        job = await submit(opened)
        with capture_logs() as logs:

            async def says(event: str) -> list[MutableMapping[str, Any]]:
                return [each for each in logs if each["event"] == event]

            async def is_taken() -> bool:
                return (await reload(opened, job)).lease_counter > 0

            async with running(asyncio.create_task(work(opened))):
                await until(lambda: says("worker_not_ready"))
                [said] = await says("worker_not_ready")
                assert (said["postgres"], said["redis"]) == (True, False)
                assert not await says("worker_ready")
                with redis_server(port, tmp_path):
                    await until(lambda: says("worker_ready"))
                    await until(is_taken)


async def test_a_gateway_that_starts_before_redis_says_so(
    make_settings: Callable[..., Settings],
) -> None:
    app = create_app(make_settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://test"
        ) as client,
    ):
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert (answer.json()["postgres"], answer.json()["redis"]) == (True, False)
