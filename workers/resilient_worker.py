"""arq's worker, which goes on when Redis does not answer: its own would end, with all its tasks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog
from arq.connections import ArqRedis
from arq.utils import poll
from arq.worker import Worker

from market.outages import OUTAGES

log = structlog.get_logger()


class ResilientWorker(Worker):
    """A worker that outlives outages of Redis, and leaves Redis open when it is stopped.

    Args:
        queue: Its Redis. arq would open one of its own in ``main``, after others have begun to use
            the worker.
        options: Of arq's worker.
    """

    def __init__(self, queue: ArqRedis, **options: Any) -> None:
        super().__init__(redis_pool=queue, handle_signals=False, **options)
        self.ctx["redis"] = queue
        self._polling = asyncio.Lock()
        self._started = self._ended = 0

    async def main(self) -> None:
        """Poll the queue until cancelled. Unlike arq's this asks nothing of Redis before it polls:
        Redis may be away when a process starts."""
        async for _ in poll(self.poll_delay_s):
            await self._poll_iteration()

    def run_job(self, job_id: str, score: int) -> Coroutine[Any, Any, None]:
        self._started += 1
        return super().run_job(job_id, score)

    async def stop(self) -> None:
        """Cancel what runs, and wait until that has ended. Unlike arq's ``close`` this leaves Redis
        open, which others use."""
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    def _release_sem_dec_counter_on_complete(self) -> None:
        self._ended += 1
        super()._release_sem_dec_counter_on_complete()

    async def _poll_iteration(self) -> None:
        async with self._polling:
            try:
                await super()._poll_iteration()
            except OUTAGES as error:
                log.warning("redis_unreachable", error=type(error).__name__)
                self._free_unused_slots()

    def _free_unused_slots(self) -> None:
        """arq takes a slot before it asks Redis for the job, and keeps it if that fails."""
        while self.job_counter > self._started - self._ended:
            self.job_counter -= 1
            self.sem.release()
