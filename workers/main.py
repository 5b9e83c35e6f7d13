"""A worker process: `python -m workers`. Run as many as there is work for."""

import asyncio

import structlog
import uvloop
from arq.connections import RedisSettings
from arq.cron import CronJob, cron
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from prometheus_client import start_http_server

from mesh import log, queue
from mesh.names import WORKER_QUEUE
from mesh.settings import Settings
from workers.deposits import watch_deposits
from workers.services import open_services
from workers.settle import settle
from workers.supervise import supervise
from workers.sweep import send_outbox, sweep

events = structlog.get_logger()

POLL_DELAY = 0.02
"""Seconds between arq's looks at the queue: a part of every generation's first-token time."""

TASK_MARGIN = 300
"""Seconds that a supervision may run past its generation's deadline, to end it properly."""

CRON_LIMIT = 300
"""Seconds after which arq gives a cron run up."""


def every(seconds: int, task: WorkerCoroutine) -> CronJob:
    """A cron job about every so many seconds: a divisor of a minute, or whole minutes."""
    if seconds < 60:
        return cron(task, second=set(range(0, 60, seconds)), timeout=CRON_LIMIT)
    minutes = min(seconds // 60, 60)
    return cron(task, minute=set(range(0, 60, minutes)), second=0, timeout=CRON_LIMIT)


async def run(settings: Settings) -> None:
    """Work until SIGTERM; then leases are given back, so that others take over at once."""
    log.configure(json=settings.log_json)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr="127.0.0.1")
    payments = settings.payments
    async with open_services(settings) as services:
        worker = Worker(
            functions=[
                func(
                    supervise,
                    timeout=settings.generation.deadline + TASK_MARGIN,
                    max_tries=1,
                    keep_result=0,
                )
            ],
            cron_jobs=[
                every(settings.generation.sweep_interval, sweep),
                every(settings.generation.sweep_interval, send_outbox),
                every(payments.deposit_interval, watch_deposits),
                every(payments.settlement_interval, settle),
            ],
            redis_settings=RedisSettings.from_dsn(settings.redis_url),
            queue_name=WORKER_QUEUE,
            job_serializer=queue.serialize,
            job_deserializer=queue.deserialize,
            poll_delay=POLL_DELAY,
            max_jobs=settings.generation.supervisors_per_worker,
            allow_abort_jobs=False,
            keep_result=0,
            ctx={"services": services},
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
