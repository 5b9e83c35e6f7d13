"""The parts of a worker process that a test needs, in its own process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from market.resources import Resources
from workers.dispatch.dispatcher import Dispatcher
from workers.worker import supervision_worker


@asynccontextmanager
async def dispatching(resources: Resources) -> AsyncIterator[None]:
    """Supervise what is queued, and dispatch the jobs that wait."""
    worker = supervision_worker(resources)
    tasks = [
        asyncio.create_task(worker.main()),
        asyncio.create_task(Dispatcher(resources).run()),
    ]
    try:
        yield
        assert not any(task.done() for task in tasks), "a part of the worker has failed"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await worker.stop()
