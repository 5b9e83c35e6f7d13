"""The order in which jobs are served that wait for a route: fair among wallets, the oldest first.

Admission estimates by the order that the dispatcher serves in.
"""

from sqlalchemy import CTE, ColumnElement, exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from market.jobs import queries
from market.jobs.tables import Job


def positions() -> ColumnElement[int]:
    """SQL: KV positions that a job reserves on each node of its route."""
    return Job.prompt_tokens + Job.max_tokens


def turns(*conditions: ColumnElement[bool]) -> CTE:
    """SQL: ids of jobs in flight that meet the conditions, and the ``turn`` of each among its
    wallet's jobs of that model: 1 for the first.

    Those that have had a route come before those that wait for their first, and older ones before
    newer. Jobs with the same turn, of different wallets, are served by age; so a wallet with many
    jobs delays another one's job by no more than one of its own.
    """
    turn = func.row_number().over(
        partition_by=(Job.model_id, Job.user_wallet),
        order_by=(Job.epoch == 0, Job.started_at, Job.id),
    )
    found = select(
        Job.id,
        Job.user_wallet,
        Job.epoch,
        positions().label("positions"),
        turn.label("turn"),
    )
    return found.where(queries.in_flight(), *conditions).cte("turns")


async def any_before(db: AsyncSession, job: Job) -> bool:
    """Whether a job that needs no more KV cache than this one waits for its first route: what is
    free is not enough for either, or that job's to take."""
    found = await db.scalar(
        select(
            exists().where(
                queries.in_flight(),
                Job.waiting_since.is_not(None),
                Job.epoch == 0,
                Job.model_id == job.model_id,
                Job.id != job.id,
                positions() <= job.prompt_tokens + job.max_tokens,
            )
        )
    )
    return bool(found)
