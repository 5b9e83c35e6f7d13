"""Cancellation of a job: no token comes any more, and its supervisor, which is told, ends it.

Redis says so first: from then on nothing can be read that could not be read before, so that the
bill cannot grow. Either word alone is enough for the supervisor.
"""

import asyncio
import datetime as dt
from contextlib import suppress

import structlog
from redis.exceptions import RedisError
from sqlalchemy import update

from market.errors import Unavailable
from market.jobs import messaging, queries, stop
from market.jobs.reading.token_hub import TokenHub
from market.jobs.stop import Reader
from market.jobs.tables import Job
from market.resources import Resources
from mesh.wire import PLATFORM, Cancel

log = structlog.get_logger()


CANCEL_WAIT = 3.0
"""Seconds a cancel waits for the end, so that its answer can say what it cost."""


async def cancel(resources: Resources, job: Job, reader: Reader | None = None) -> None:
    """Ask for the end of a job. Its user pays for what was delivered until then. Only the first
    request of a job tells its supervisor, however many there are.

    Args:
        resources: Redis and the database.
        job: Which.
        reader: Who has disconnected. If nobody else has read of the job, it ends with what he was
            sent.
    """
    if job.status in queries.ENDED:
        return
    await _stop(resources, job, reader)
    async with resources.sessions.begin() as db:
        epoch = await db.scalar(
            update(Job)
            .where(Job.id == job.id, Job.status.not_in(queries.ENDED), ~Job.cancel_requested)
            .values(cancel_requested=True)
            .returning(Job.epoch)
        )
    if epoch is None:
        return
    try:
        message = Cancel(job.request_id, epoch)
        await messaging.publish_event(resources.redis, message, sender=PLATFORM)
    except (RedisError, OSError) as error:  # the supervisor sees it when it renews its lease
        log.warning("cancel_notify_failed", request_id=job.request_id, error=type(error).__name__)


async def _stop(resources: Resources, job: Job, reader: Reader | None) -> None:
    left = max(job.deadline_at - dt.datetime.now(dt.UTC), dt.timedelta())
    ttl = round(left.total_seconds()) + resources.settings.generation.stream_ttl
    try:
        await stop.stop(resources.redis, job.request_id, reader, ttl=ttl)
    except (RedisError, OSError) as error:  # the supervisor seals it
        log.warning("stop_failed", request_id=job.request_id, error=type(error).__name__)


async def cancel_and_wait(resources: Resources, job: Job, hub: TokenHub) -> None:
    """As :func:`cancel`, and give the supervisor a moment to end the job."""
    await cancel(resources, job)
    with suppress(TimeoutError, Unavailable):
        async with asyncio.timeout(CANCEL_WAIT):
            await hub.wait_for_end(job.request_id)
