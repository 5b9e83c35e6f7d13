"""Whether a new job is admitted: by what its wallet has in flight, and by when it would start.

Both are counted exactly, in the transaction that writes the job, under a lock on the wallet and one
on the model. They are counted from the jobs that have not ended, so that nothing has to be
corrected after a failure. A refusal undoes the whole transaction.
"""

import math
from collections.abc import Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from market.jobs import queries
from market.jobs.admission import waiting
from market.jobs.admission.capacity import capacity_of
from market.jobs.admission.throughput import throughput
from market.jobs.errors import Overloaded, TooManyInFlight
from market.jobs.tables import Job
from market.resources import Resources
from market.routing.coverage import Coverage
from market.settings.generation import GenerationSettings
from market.settings.limits import LimitSettings

MODEL_LOCK = 0x0FA16
"""First half of an advisory lock's key; the second is the model's."""

IN_FLIGHT_RETRY = 5
"""Seconds after which one of a wallet's many jobs has probably ended."""

UNMEASURED_RETRY = 5
"""Seconds after which it is known how fast a model's nodes compute."""

MAX_RETRY = 300
"""Seconds after which to ask again, at most: an estimate for later than that is worth nothing."""


async def check_in_flight(
    db: AsyncSession, wallet: str, positions: Sequence[int], limits: LimitSettings
) -> None:
    """
    Args:
        db: The transaction that writes the jobs, which has the wallet's lock.
        positions: Positions of prompt and answer of each new job.

    Raises:
        TooManyInFlight: jobs of the wallet have to end first.
    """
    found = await db.execute(
        select(func.count(), func.coalesce(func.sum(waiting.positions()), 0)).where(
            Job.user_wallet == wallet, queries.in_flight()
        )
    )
    jobs, reserved = found.one()
    if jobs + len(positions) > limits.jobs_in_flight_per_wallet:
        raise TooManyInFlight(
            f"You have {jobs} jobs that have not ended, and may have "
            f"{limits.jobs_in_flight_per_wallet}. Wait until one ends, or cancel one.",
            retry_after=IN_FLIGHT_RETRY,
        )
    most, more = limits.positions_in_flight_per_wallet, sum(positions)
    if jobs and reserved + more > most:
        raise TooManyInFlight(
            f"Your jobs that have not ended reserve {reserved} positions (prompt and max_tokens). "
            f"With {more} more they are beyond the {most} allowed. Wait until one ends, "
            "cancel one, or lower max_tokens.",
            retry_after=IN_FLIGHT_RETRY,
        )


async def admit(
    resources: Resources, db: AsyncSession, jobs: Sequence[Job], coverage: Coverage
) -> None:
    """Admit the new jobs of a request. No other ones of their model are admitted until the
    transaction has ended, so that this comes last in it.

    Args:
        resources: Redis and the settings.
        db: The transaction that has written the jobs.
        jobs: The new jobs, of one model and wallet.
        coverage: By which nodes the model is served.

    Raises:
        Overloaded: the last one would start later than jobs may be expected to.
    """
    last = jobs[-1]
    rate = await throughput(resources.redis, last.model_id)
    await db.execute(select(func.pg_advisory_xact_lock(MODEL_LOCK, func.hashtext(last.model_id))))
    settings = resources.settings.generation
    check_start(
        settings,
        coverage,
        rate,
        await _served_before(db, last),
        last.prompt_tokens + last.max_tokens,
        max_wait=settings.max_start_wait,
    )


def check_start(
    settings: GenerationSettings,
    coverage: Coverage,
    rate: float | None,
    before: tuple[int, int],
    positions: int,
    *,
    max_wait: float,
) -> None:
    """
    Args:
        settings: How many jobs a route computes at once.
        coverage: By which nodes the model is served.
        rate: Positions a second that they compute, as measured; none if nothing was.
        before: Jobs, and their positions, that are served before the job.
        positions: Positions of the job.
        max_wait: Seconds.

    Raises:
        Overloaded: the job is expected to wait for its start for longer than that.
    """
    model = coverage.model
    capacity = capacity_of(
        coverage.serving(positions),
        layers=model.layers,
        jobs_per_route=settings.jobs_per_route,
        rate=rate,
    )
    wait = capacity.start_wait(*before, positions)
    if wait > max_wait:
        seconds = _retry_after(wait, max_wait)
        raise Overloaded(
            f"{model.id} has more to do than it can begin soon. Try again in {seconds} seconds.",
            retry_after=seconds,
        )


async def _served_before(db: AsyncSession, new: Job) -> tuple[int, int]:
    """Jobs of a new job's model, and their positions, that are served before it."""
    turns = waiting.turns(Job.model_id == new.model_id, Job.id != new.id)
    own = select(func.count()).where(turns.c.user_wallet == new.user_wallet).scalar_subquery()
    found = await db.execute(
        select(func.count(), func.coalesce(func.sum(turns.c.positions), 0))
        .select_from(turns)
        .where(or_(turns.c.epoch > 0, turns.c.turn <= own + 1))
    )
    jobs, positions = found.one()
    return jobs, positions


def _retry_after(wait: float, max_start_wait: float) -> int:
    """Seconds until what waits is down to half of what may: if all came back as soon as one more
    job is admitted, most would be refused again."""
    if math.isinf(wait):
        return UNMEASURED_RETRY
    return min(math.ceil(wait - max_start_wait / 2), MAX_RETRY)
