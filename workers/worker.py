"""A worker process: `python -m workers`. Run as many as there is work for."""

import asyncio
import signal

import structlog
import uvloop
from arq.worker import func
from prometheus_client import start_http_server

from market import outages, queue
from market.outages import OUTAGES
from market.resources import Resources, open_resources
from market.settings import Settings
from mesh import log
from mesh.redis_keys import WORKER_QUEUE
from workers.crons.schedule import cron_worker
from workers.dispatch.dispatcher import Dispatcher
from workers.resilient_worker import ResilientWorker
from workers.supervisor.task import supervise

events = structlog.get_logger()

OUTAGE_WAIT_SECONDS = 1.0
"""Seconds before Redis is asked again that does not answer."""

PROBE_TIMEOUT = 2.0
"""Seconds that Postgres and Redis each have to answer, before they count as away."""

TASK_MARGIN_SECONDS = 300
"""Seconds that a supervision may run past its generation's deadline, to end it properly."""


class WakeupWorker(ResilientWorker):
    """arq's worker, which polls its queue every half second, and at once at a wake-up.

    Polling fifty times a second instead costs a tenth of a core and is still slower.
    """

    async def main(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll_at_wakeups())
            await super().main()

    async def _poll_at_wakeups(self) -> None:
        while True:
            try:
                if await queue.wait_for_wakeup(self.ctx["resources"].queue):
                    await self._poll_iteration()
            except OUTAGES as error:
                events.warning("redis_unreachable", error=type(error).__name__)
                await asyncio.sleep(OUTAGE_WAIT_SECONDS)


def supervision_worker(resources: Resources) -> ResilientWorker:
    """The arq worker whose slots the supervisors of generations take."""
    settings = resources.settings
    return WakeupWorker(
        resources.queue,
        functions=[
            func(
                supervise,
                timeout=settings.generation.deadline + TASK_MARGIN_SECONDS,
                max_tries=1,
                keep_result=0,
            )
        ],
        queue_name=WORKER_QUEUE,
        job_serializer=queue.serialize,
        job_deserializer=queue.deserialize,
        max_jobs=settings.generation.supervisors_per_worker,
        allow_abort_jobs=False,
        keep_result=0,
        ctx={"resources": resources},
    )


async def work(resources: Resources) -> None:
    """Supervise generations, dispatch those that wait, and run the crons, until cancelled or one of
    the three fails, which ends the others."""
    workers = (supervision_worker(resources), cron_worker(resources))
    try:
        async with asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.main())
            tasks.create_task(Dispatcher(resources).run())
            tasks.create_task(say_when_ready(resources))
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))


async def say_when_ready(resources: Resources) -> None:
    """Log once that Postgres and Redis answer, and until then which of them does not."""
    said: dict[str, bool] = {}
    while True:
        reached = await outages.reached(resources.sessions, resources.redis, within=PROBE_TIMEOUT)
        if all(reached.values()):
            events.info("worker_ready")
            return
        if reached != said:
            events.warning("worker_not_ready", **reached)
        said = reached
        await asyncio.sleep(OUTAGE_WAIT_SECONDS)


async def run(settings: Settings) -> None:
    """Work until SIGTERM; then leases are released, so that others take over at once."""
    log.configure(json=settings.log_json)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr="127.0.0.1")
    working = asyncio.current_task()
    assert working is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    async with open_resources(settings) as resources:
        events.info("worker_started")
        try:
            await work(resources)
        except asyncio.CancelledError:
            events.info("worker_stopped")


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Settings()))
