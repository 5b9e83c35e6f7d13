"""A worker process: `python -m workers`. Run as many as there is work for."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog
import uvloop
from arq.cron import CronJob, cron
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from prometheus_client import start_http_server

from market import queue
from market.outages import OUTAGES
from market.resources import open_resources
from market.settings import Settings
from mesh import log
from mesh.redis_keys import WORKER_QUEUE
from workers.chain_indexer.indexer import follow_chain
from workers.crons.job_sweeper import send_outbox, sweep
from workers.crons.ledger_check import check_ledger
from workers.crons.rebalance import rebalance
from workers.settlement import settle
from workers.supervisor.task import supervise

events = structlog.get_logger()

OUTAGE_WAIT_SECONDS = 1.0
"""Seconds before Redis is asked again that does not answer."""

TASK_MARGIN_SECONDS = 300
"""Seconds that a supervision may run past its generation's deadline, to end it properly."""

CRON_TIMEOUT_SECONDS = 300
"""Seconds after which arq cancels a cron run."""


def every(seconds: int, task: WorkerCoroutine) -> CronJob:
    """A cron job that runs ``task`` every ``seconds``: a divisor of 60, or more than 60, in which
    case they are rounded down to whole minutes, and to an hour at most."""
    if seconds < 60:
        return cron(task, second=set(range(0, 60, seconds)), timeout=CRON_TIMEOUT_SECONDS)
    minutes = min(seconds // 60, 60)
    return cron(task, minute=set(range(0, 60, minutes)), second=0, timeout=CRON_TIMEOUT_SECONDS)


class WakeupWorker(Worker):
    """arq's worker, which polls its queue every half second, and at once at a wake-up.

    Polling fifty times a second instead costs a tenth of a core and is still slower.

    It goes on when Redis does not answer: arq's own would end, and all its supervisors with it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._polling = asyncio.Lock()
        self._started = self._ended = 0

    def run_job(self, job_id: str, score: int) -> Coroutine[Any, Any, None]:
        self._started += 1
        return super().run_job(job_id, score)

    def _release_sem_dec_counter_on_complete(self) -> None:
        self._ended += 1
        super()._release_sem_dec_counter_on_complete()

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

    async def _poll_iteration(self) -> None:
        async with self._polling:
            try:
                await super()._poll_iteration()
            except OUTAGES as error:
                events.warning("redis_unreachable", error=type(error).__name__)
                self._free_unused_slots()

    def _free_unused_slots(self) -> None:
        """arq takes a slot before it asks Redis for the job, and keeps it if that fails."""
        while self.job_counter > self._started - self._ended:
            self.job_counter -= 1
            self.sem.release()


async def run(settings: Settings) -> None:
    """Work until SIGTERM; then leases are released, so that others take over at once."""
    log.configure(json=settings.log_json)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr="127.0.0.1")
    payments = settings.payments
    async with open_resources(settings) as resources:
        pool = await queue.connect(settings.redis_url)
        worker = WakeupWorker(
            functions=[
                func(
                    supervise,
                    timeout=settings.generation.deadline + TASK_MARGIN_SECONDS,
                    max_tries=1,
                    keep_result=0,
                )
            ],
            cron_jobs=[
                every(settings.generation.sweep_interval, sweep),
                every(settings.generation.sweep_interval, send_outbox),
                every(payments.deposit_interval, follow_chain),
                every(payments.settlement_interval, settle),
                every(payments.check_interval, check_ledger),
                every(settings.placement.interval, rebalance),
            ],
            redis_pool=pool,
            queue_name=WORKER_QUEUE,
            job_serializer=queue.serialize,
            job_deserializer=queue.deserialize,
            max_jobs=settings.generation.supervisors_per_worker,
            allow_abort_jobs=False,
            keep_result=0,
            ctx={"resources": resources},
        )
        events.info("worker_started")
        try:
            await worker.async_run()
        except asyncio.CancelledError:
            events.info("worker_stopped")
        finally:
            await worker.close()


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Settings()))
