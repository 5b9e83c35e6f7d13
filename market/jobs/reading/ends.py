"""The ends of jobs from Postgres, for those whose token stream does not bring one."""

import datetime as dt
from collections.abc import Collection

from sqlalchemy import select

from market.errors import Unavailable
from market.jobs import queries
from market.jobs.live_session import JobOutcome
from market.jobs.tables import Job
from market.resources import Resources

DEADLINE_GRACE = dt.timedelta(minutes=1)
"""What a job may take to end after its deadline, before its readers are sent away."""


async def find_ends(
    resources: Resources, request_ids: Collection[str]
) -> dict[str, JobOutcome | Unavailable]:
    """How those of the jobs ended that have; and an error for each that nobody has ended, although
    its deadline has passed. One query for all that run."""
    now = dt.datetime.now(dt.UTC)
    ends: dict[str, JobOutcome | Unavailable] = {}
    async with resources.sessions() as db:
        # Not the whole rows, which hold the prompts.
        rows = await db.execute(
            select(Job.request_id, Job.status, Job.deadline_at).where(
                Job.request_id.in_(request_ids)
            )
        )
        for request_id, status, deadline in rows.all():
            if status in queries.ENDED:
                job = await queries.find(db, request_id)
                assert job is not None
                ends[request_id] = await queries.outcome(db, job)
            elif now > deadline + DEADLINE_GRACE:
                ends[request_id] = Unavailable(
                    "Nobody has ended this job in time. Look again later."
                )
    return ends
