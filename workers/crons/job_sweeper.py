"""Finds generations that nobody works on, and sends what transactions left to be sent."""

from typing import Any

import structlog

from market import outbox, queue
from market.jobs import queries
from market.resources import Services
from workers.supervisor import lease

log = structlog.get_logger()

NEW_JOB_GRACE = 2.0
"""Seconds that the poke of a new job gets before the sweeper repeats it."""

BATCH = 1000


async def sweep(ctx: dict[str, Any]) -> None:
    """arq cron: poke a worker for every job without a living supervisor.

    arq itself would keep a dead worker's job locked for the whole job time-out, and a lost Redis
    forgets all pokes. The lease counter in the poke's id tells attempts apart.
    """
    services: Services = ctx["services"]
    found = await lease.abandoned(services.sessions, grace=NEW_JOB_GRACE, limit=BATCH)
    for request_id, counter in found:
        once = f"sweep:{request_id}:{counter}"
        await queue.enqueue(services.queue, queries.SUPERVISE, request_id, once=once)
    if found:
        log.info("jobs_swept", count=len(found))


async def send_outbox(ctx: dict[str, Any]) -> None:
    """arq cron: what the gateway wrote but did not live to send."""
    services: Services = ctx["services"]
    await outbox.send_outbox(services.sessions, services.queue)
