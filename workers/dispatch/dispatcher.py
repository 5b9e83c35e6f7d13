"""Wakes a supervisor for a job that waits, once it may find a route, and ends jobs that are over.

One loop a worker. To wake a supervisor for a job twice, or in vain, is harmless: it takes the lease
or does nothing, and gives the job back if there is no route.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from itertools import groupby
from typing import Any

import structlog

from market import metrics, outages, queue
from market.jobs import messaging, queries
from market.resources import Resources
from workers.dispatch import waiting_jobs
from workers.dispatch.free_routes import FreeRoutes
from workers.dispatch.waiting_jobs import WaitingJob
from workers.supervisor import task

log = structlog.get_logger()

DISPATCH_SECONDS = 0.2
"""Seconds between two looks: with the time to wake a supervisor, what a job waits beyond the moment
in which there is a route for it."""

IDLE_SHARE = 4
"""How many times as long as a look took the next one waits, so that looks never take more than a
fifth of a core, however many nodes and jobs there are."""

OUTAGE_SECONDS = 2.0
"""Seconds until the next look while Postgres or Redis cannot be reached."""

MAX_JOBS = 500
"""Jobs of each model that one look is about."""

AT_ONCE = 10
"""Jobs that are ended at once: each takes a connection to Postgres for a moment."""

KEEP_KV_SECONDS = 15.0
"""Seconds for which a generation without a route keeps its KV cache on the nodes that are left.
Then others get the memory, who may wait for it while they occupy what this generation needs."""

COUNT_SKIPS_SECONDS = 30.0
"""Seconds after which a model without a route for those who wait is counted again for the nodes
that are there: about when a client would ask again that is told that there is none."""


class Dispatcher:
    """The loop of one worker process."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._count_skips_at: dict[str, float] = {}
        self._acting: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Look for jobs to wake or end until cancelled."""
        try:
            while True:
                began = time.monotonic()
                try:
                    await self.dispatch()
                    wait = max(DISPATCH_SECONDS, IDLE_SHARE * (time.monotonic() - began))
                except Exception as error:  # whatever it is, other jobs need the next look
                    say = log.warning if outages.is_outage(error) else log.error
                    say("look_failed", error=type(error).__name__)
                    wait = OUTAGE_SECONDS
                await asyncio.sleep(wait)
        finally:
            for acting in self._acting.values():
                acting.cancel()
            await self.finish()

    async def finish(self) -> None:
        """Wait until the jobs that are being ended have ended."""
        await asyncio.gather(*self._acting.values(), return_exceptions=True)

    async def dispatch(self) -> None:
        """Look once."""
        jobs = await waiting_jobs.find(self._resources.sessions, limit=MAX_JOBS)
        self._show(jobs)
        if not jobs:
            return
        idle = [job for job in jobs if not job.is_held]
        self._begin([job for job in idle if job.is_over], self._end)
        self._begin([job for job in idle if self._may_free_kv(job)], self._free_kv)
        waiting = [job for job in jobs if not job.is_over and not _keeps_kv_too_long(job)]
        await self._wake(await self._reported(waiting))
        by_model = sorted(waiting, key=lambda job: job.model_id)  # stable: the order is kept
        for model_id, of_model in groupby(by_model, key=lambda job: job.model_id):
            if model_id in self._resources.catalog:
                await self._try_wake_for_routes(model_id, list(of_model))

    def _may_free_kv(self, job: WaitingJob) -> bool:
        return _keeps_kv_too_long(job) and job.model_id in self._resources.catalog

    def _show(self, jobs: Sequence[WaitingJob]) -> None:
        by_model = Counter(job.model_id for job in jobs)
        for model in self._resources.catalog:
            metrics.waiting_jobs.labels(model.id).set(by_model[model.id])

    async def _end(self, job: WaitingJob) -> None:
        """End a job that is over. It needs no slot: its supervision ends before it looks for a
        route."""
        await task.supervise({"resources": self._resources}, job.request_id)

    async def _free_kv(self, job: WaitingJob) -> None:
        await task.free_kv(self._resources, job.request_id)

    def _begin(
        self, jobs: Sequence[WaitingJob], act: Callable[[WaitingJob], Coroutine[Any, Any, None]]
    ) -> None:
        """Begin to act on jobs, as many as may be at once. Nobody waits for it: a node that does
        not answer may delay the end of its job, and of no other."""
        for job in jobs:
            if job.request_id not in self._acting and len(self._acting) < AT_ONCE:
                acting = asyncio.create_task(self._act(job, act))
                self._acting[job.request_id] = acting

    async def _act(
        self, job: WaitingJob, act: Callable[[WaitingJob], Coroutine[Any, Any, None]]
    ) -> None:
        try:
            await act(job)
        except Exception as error:  # the next look tries again
            log.error("dispatch_failed", request_id=job.request_id, error=type(error).__name__)
        finally:
            del self._acting[job.request_id]

    async def _reported(self, jobs: Sequence[WaitingJob]) -> list[WaitingJob]:
        """The jobs of which a node has reported something since: the route that keeps their KV
        cache may have completed them."""
        kept = [job for job in jobs if job.state.hops]
        newest = await messaging.newest_events(
            self._resources.redis, [job.request_id for job in kept]
        )
        return [
            job
            for job, event in zip(kept, newest, strict=True)
            if event not in (None, job.state.last_event)
        ]

    async def _try_wake_for_routes(self, model_id: str, jobs: Sequence[WaitingJob]) -> None:
        """What fails for one model concerns no other."""
        try:
            await self._wake_for_routes(model_id, jobs)
        except Exception as error:
            if outages.is_outage(error):
                raise
            log.error("dispatch_failed", model_id=model_id, error=type(error).__name__)

    async def _wake_for_routes(self, model_id: str, jobs: Sequence[WaitingJob]) -> None:
        """Wake supervisors for as many of a model's jobs as there are routes now, beside those that
        have been woken and will take theirs."""
        resources = self._resources
        routes = await FreeRoutes.read(resources.redis, resources.catalog.get(model_id))
        await self._wake([job for job in jobs if routes.take(job)])
        if routes.refused is None:
            self._count_skips_at.pop(model_id, None)
            return
        now = time.monotonic()
        count_at = self._count_skips_at.setdefault(model_id, now + COUNT_SKIPS_SECONDS)
        if now >= count_at and resources.skips.due:
            self._count_skips_at[model_id] = now + COUNT_SKIPS_SECONDS
            await resources.skips.count(routes.explain(routes.refused))

    async def _wake(self, jobs: Sequence[WaitingJob]) -> None:
        for job in jobs:
            if job.is_held:
                continue
            key = f"wake:{job.request_id}:{job.lease_counter}"
            await queue.enqueue(
                self._resources.queue, queries.SUPERVISE, job.request_id, dedup_key=key
            )


def _keeps_kv_too_long(job: WaitingJob) -> bool:
    """Whether a job that goes on waiting has to give its KV cache back."""
    waited = 0.0 if job.waited is None else job.waited
    return bool(job.state.hops) and waited > KEEP_KV_SECONDS and not job.is_over
