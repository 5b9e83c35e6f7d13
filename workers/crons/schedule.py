"""What the workers do at times, by an arq worker of its own, whose slots no generation can take."""

import functools
from typing import Any

import structlog
from arq.cron import CronJob, cron
from arq.typing import WorkerCoroutine

from market import queue
from market.resources import Resources
from mesh.redis_keys import CRON_QUEUE
from workers.chain_indexer.indexer import follow_chain
from workers.crons.job_sweeper import delete_sent, send_outbox, sweep
from workers.crons.ledger_check import check_ledger
from workers.crons.rebalance import rebalance
from workers.crons.token_eraser import erase_tokens
from workers.resilient_worker import ResilientWorker
from workers.settlement import settle

log = structlog.get_logger()

TIMEOUT_SECONDS = 300
"""Seconds after which arq cancels a run."""


def cron_worker(resources: Resources) -> ResilientWorker:
    """The arq worker of all crons. Of the workers of all processes one begins each run."""
    settings = resources.settings
    payments = settings.payments
    crons = [
        every(settings.generation.sweep_interval, sweep),
        every(settings.generation.sweep_interval, send_outbox),
        every(settings.generation.sweep_interval, erase_tokens),
        every(3600, delete_sent),
        every(payments.deposit_interval, follow_chain),
        every(payments.settlement_interval, settle),
        every(payments.check_interval, check_ledger),
        every(settings.placement.interval, rebalance),
    ]
    return ResilientWorker(
        resources.queue,
        cron_jobs=crons,
        queue_name=CRON_QUEUE,
        job_serializer=queue.serialize,
        job_deserializer=queue.deserialize,
        max_jobs=len(crons) + 1,  # a slot each, and one for a run that is left out
        keep_result=0,
        ctx={"resources": resources},
    )


def every(seconds: int, task: WorkerCoroutine) -> CronJob:
    """A cron job that runs ``task`` every ``seconds``: a divisor of 60, or more than 60, in which
    case they are rounded down to whole minutes, and to an hour at most.

    A run that is due while the last one goes on in this process is left out. So each task takes one
    slot at most, and a slow one keeps no other from running.
    """
    run = leaving_out_overlaps(task)
    if seconds < 60:
        return cron(run, second=set(range(0, 60, seconds)), timeout=TIMEOUT_SECONDS)
    minutes = min(seconds // 60, 60)
    return cron(run, minute=set(range(0, 60, minutes)), second=0, timeout=TIMEOUT_SECONDS)


def leaving_out_overlaps(task: WorkerCoroutine) -> WorkerCoroutine:
    """The task, which does nothing while a run of it goes on in this process."""
    running = False

    @functools.wraps(task)
    async def run(ctx: dict[str, Any], *_: Any, **__: Any) -> None:
        nonlocal running
        if running:
            log.info("cron_left_out", task=task.__qualname__)
            return
        running = True
        try:
            await task(ctx)
        finally:
            running = False

    return run
