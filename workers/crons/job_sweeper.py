"""Enqueues tasks that no worker has: generations without a supervisor, and those in the outbox."""

import time
from typing import Any

import structlog

from market import outbox, queue
from market.jobs import queries
from market.resources import Resources
from workers.supervisor import lease

log = structlog.get_logger()

NEW_JOB_GRACE_SECONDS = 2.0
"""Seconds that a new job gets to be taken up before the sweeper enqueues it again."""

ATTEMPT_SECONDS = 10
"""Seconds after which a job that nobody has taken up is enqueued once more."""

MAX_JOBS = 1000
"""Jobs enqueued in one run."""


async def sweep(ctx: dict[str, Any]) -> None:
    """arq cron: enqueue every job whose supervisor no longer holds the lease.

    arq itself would keep a failed worker's task locked for the whole task time-out, and a lost
    Redis forgets all tasks. The lease counter in the deduplication key tells attempts apart, and so
    does the time: arq would keep an attempt locked, too, whose worker failed before it had a lease.
    """
    resources: Resources = ctx["resources"]
    attempt = int(time.time() / ATTEMPT_SECONDS)
    found = await lease.abandoned(resources.sessions, grace=NEW_JOB_GRACE_SECONDS, limit=MAX_JOBS)
    for request_id, counter in found:
        key = f"sweep:{request_id}:{counter}:{attempt}"
        await queue.enqueue(resources.queue, queries.SUPERVISE, request_id, dedup_key=key)
    if found:
        log.info("jobs_swept", count=len(found))


async def send_outbox(ctx: dict[str, Any]) -> None:
    """arq cron: send the outbox rows that the gateway wrote but did not come to send."""
    resources: Resources = ctx["resources"]
    await outbox.send_outbox(resources.sessions, resources.queue)


async def delete_sent(ctx: dict[str, Any]) -> None:
    """arq cron: delete the outbox rows that were sent a day ago."""
    resources: Resources = ctx["resources"]
    await outbox.delete_sent(resources.sessions)
