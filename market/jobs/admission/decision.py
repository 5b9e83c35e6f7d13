"""Whether a new job is admitted, before anything is held for it: by what its wallet has in flight,
and by when it would start.

Both are counted exactly, in the transaction that writes the job, under a lock on the wallet and one
on the model. They are counted from the jobs that have not ended, so that nothing has to be
corrected after a failure.
"""

import math

from redis.asyncio import Redis
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from market.jobs import queries
from market.jobs.admission import waiting
from market.jobs.admission.capacity import Capacity, capacity_of
from market.jobs.admission.throughput import throughput
from market.jobs.errors import Overloaded, TooManyInFlight
from market.jobs.quote import Quote
from market.jobs.tables import Job
from market.resources import Resources
from market.settings.generation import GenerationSettings
from market.settings.limits import LimitSettings
from mesh import redis_keys

WALLET_LOCK = 0x0FA15
MODEL_LOCK = 0x0FA16
"""First halves of the advisory locks' keys; the second is the wallet's or the model's."""

IN_FLIGHT_RETRY = 5
"""Seconds after which one of a wallet's many jobs has probably ended."""

UNMEASURED_RETRY = 5
"""Seconds after which it is known how fast a model's nodes compute."""

MAX_RETRY = 300
"""Seconds after which to ask again, at most: an estimate for later than that is worth nothing."""

LEAST_POSITIONS = 1
"""Positions that no job has fewer of."""

REMEMBERED_MS = 2000
"""Milliseconds for which it is remembered that nobody is admitted."""

CHECKED_MS = 250
"""Milliseconds after which one submission checks whether that is still so."""


async def check_remembered(redis: Redis, model_id: str) -> bool:
    """Refuse, with two short commands, what was refused a moment ago and would have been to
    anybody.

    Returns:
        Whether this submission is the one that checks whether the model still admits nobody.

    Raises:
        Overloaded: the model admits nobody now.
    """
    retry_after = await redis.get(redis_keys.overloaded(model_id))
    if retry_after is None:
        return False
    if await redis.set(redis_keys.overload_checked(model_id), 1, nx=True, px=CHECKED_MS):
        return True
    raise _overloaded(model_id, int(retry_after))


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
    generation = resources.settings.generation
    capacity = await _capacity(resources, quote, positions)
    await _lock(db, WALLET_LOCK, wallet)
    await _check_in_flight(db, wallet, positions, resources.settings.limits)
    await _lock(db, MODEL_LOCK, quote.model.id)
    wait = capacity.start_wait(*await _served_before(db, wallet, quote.model.id), positions)
    if wait <= generation.max_start_wait:
        await resources.redis.delete(redis_keys.overloaded(quote.model.id))
        return
    await _remember_if_nobody(resources, db, quote)
    raise _overloaded(quote.model.id, _retry_after(wait, generation))


async def _capacity(resources: Resources, quote: Quote, positions: int) -> Capacity:
    """Of the nodes that may serve a generation of ``positions``."""
    return capacity_of(
        quote.coverage.serving(positions),
        layers=quote.model.layers,
        jobs_per_route=resources.settings.generation.jobs_per_route,
        rate=await throughput(resources.redis, quote.model.id),
    )


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


async def _remember_if_nobody(resources: Resources, db: AsyncSession, quote: Quote) -> None:
    """Remember a refusal if the least job of a wallet that has no other is refused as well: by all
    nodes that may serve that one, which may be many more than those for the job refused now."""
    generation = resources.settings.generation
    model_id = quote.model.id
    capacity = await _capacity(resources, quote, LEAST_POSITIONS)
    wait = capacity.start_wait(*await _served_before(db, "", model_id), LEAST_POSITIONS)
    async with resources.redis.pipeline(transaction=True) as pipe:
        if wait > generation.max_start_wait:
            retry_after = _retry_after(wait, generation)
            pipe.set(redis_keys.overloaded(model_id), retry_after, px=REMEMBERED_MS)
            pipe.set(redis_keys.overload_checked(model_id), 1, px=CHECKED_MS)
        else:
            pipe.delete(redis_keys.overloaded(model_id))
        await pipe.execute()


def _retry_after(wait: float, settings: GenerationSettings) -> int:
    """Seconds until what waits is down to half of what may: if all came back as soon as one more
    job is admitted, most would be refused again."""
    if math.isinf(wait):
        return UNMEASURED_RETRY
    return min(math.ceil(wait - settings.max_start_wait / 2), MAX_RETRY)


def _overloaded(model_id: str, retry_after: int) -> Overloaded:
    return Overloaded(
        f"{model_id} has more to do than it can begin soon. Try again in {retry_after} seconds.",
        retry_after=retry_after,
    )
