"""Whether a new job is admitted, before anything is held for it: by what its wallet has in flight,
and by when it would start.

Both are counted exactly, in the transaction that writes the job, under a lock on the wallet and one
on the model. They are counted from the jobs that have not ended, so that nothing has to be
corrected after a failure.
"""

import math

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from market.jobs import queries
from market.jobs.admission import remembered_refusals, waiting
from market.jobs.admission.capacity import capacity_of
from market.jobs.admission.throughput import throughput
from market.jobs.errors import TooManyInFlight
from market.jobs.quote import Quote
from market.jobs.tables import Job
from market.resources import Resources
from market.settings.limits import LimitSettings

WALLET_LOCK = 0x0FA15
MODEL_LOCK = 0x0FA16
"""First halves of the advisory locks' keys; the second is the wallet's or the model's."""

IN_FLIGHT_RETRY = 5
"""Seconds after which one of a wallet's many jobs has probably ended."""

UNMEASURED_RETRY = 5
"""Seconds after which it is known how fast a model's nodes compute."""

MAX_RETRY = 300
"""Seconds after which to ask again, at most: an estimate for later than that is worth nothing."""


async def admit(
    resources: Resources, db: AsyncSession, wallet: str, quote: Quote, positions: int
) -> None:
    """Admit a new job, if nothing speaks against it. No other job of its wallet or its model is
    admitted until the transaction has ended.

    Args:
        resources: Redis and the settings.
        db: The transaction that writes the job, before it has written anything.
        wallet: Who pays.
        quote: What is asked for.
        positions: Positions of prompt and answer.

    Raises:
        TooManyInFlight: jobs of the wallet have to end first.
        Overloaded: the job would start later than jobs may be expected to.
    """
    redis, model_id = resources.redis, quote.model.id
    counts = await remembered_refusals.claim(redis, model_id, wallet, positions)
    most = resources.settings.generation.max_start_wait
    capacity = capacity_of(
        quote.coverage.serving(positions),
        layers=quote.model.layers,
        jobs_per_route=resources.settings.generation.jobs_per_route,
        rate=await throughput(redis, model_id),
    )
    await _lock(db, WALLET_LOCK, wallet)
    await _check_in_flight(db, wallet, positions, resources.settings.limits)
    await _lock(db, MODEL_LOCK, model_id)
    before = await _served_before(db, wallet, model_id)
    wait = capacity.start_wait(*before, positions)
    if wait > most:
        retry_after = _retry_after(wait, most)
        of_anybody = capacity.start_wait(*await _served_before(db, "", model_id), positions)
        await remembered_refusals.remember(
            redis, model_id, None if of_anybody > most else wallet, positions, retry_after
        )
        raise remembered_refusals.overloaded(model_id, retry_after)
    if counts:
        room = capacity.room(*before, positions, most) - 1
        await remembered_refusals.set_room(redis, model_id, wallet, room)


async def _lock(db: AsyncSession, space: int, name: str) -> None:
    await db.execute(select(func.pg_advisory_xact_lock(space, func.hashtext(name))))


async def _check_in_flight(
    db: AsyncSession, wallet: str, positions: int, limits: LimitSettings
) -> None:
    found = await db.execute(
        select(func.count(), func.coalesce(func.sum(waiting.positions()), 0)).where(
            Job.user_wallet == wallet, queries.in_flight()
        )
    )
    jobs, reserved = found.one()
    if jobs >= limits.jobs_in_flight_per_wallet:
        raise TooManyInFlight(
            f"You have {jobs} jobs that have not ended, which is as many as are allowed. Wait "
            "until one ends, or cancel one.",
            retry_after=IN_FLIGHT_RETRY,
        )
    most = limits.positions_in_flight_per_wallet
    if jobs and reserved + positions > most:
        raise TooManyInFlight(
            f"Your jobs that have not ended reserve {reserved} positions (prompt and max_tokens). "
            f"With {positions} more they are beyond the {most} allowed. Wait until one ends, "
            "cancel one, or lower max_tokens.",
            retry_after=IN_FLIGHT_RETRY,
        )


async def _served_before(db: AsyncSession, wallet: str, model_id: str) -> tuple[int, int]:
    """Jobs of the model, and their positions, that are served before a new job of the wallet."""
    turns = waiting.turns(Job.model_id == model_id)
    own = select(func.count()).where(turns.c.user_wallet == wallet).scalar_subquery()
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
