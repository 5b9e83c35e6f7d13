"""Leases as a supervisor has them, and as it leaves them when it dies."""

import datetime as dt

from sqlalchemy import func, update

from market.jobs.tables import Job
from market.resources import Resources
from workers.supervisor import lease
from workers.supervisor.lease import Lease


async def acquired(resources: Resources, job: Job, seconds: float = 60) -> Lease:
    found = await lease.acquire(resources.sessions, job.request_id, seconds)
    assert found is not None
    return found


async def expire(resources: Resources, job: Job) -> None:
    """Make the lease look as if its holder had not renewed it in time."""
    async with resources.sessions.begin() as db:
        past = func.now() - dt.timedelta(seconds=1)
        await db.execute(update(Job).where(Job.id == job.id).values(lease_expires_at=past))
