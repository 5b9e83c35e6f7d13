"""The jobs that wait without a supervisor, in the order in which they are served."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import and_, extract, func, not_, or_, select

from market.db import Sessions
from market.jobs import queries
from market.jobs.admission import waiting
from market.jobs.tables import Job
from workers.supervisor import lease
from workers.supervisor.waiting_state import WaitingState


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that waits.

    ``lease_counter``: tells attempts apart. ``positions``: that it reserves on each node.
    ``is_over``: it is cancelled, or its deadline has passed. ``is_held``: a supervisor that was
    woken for it is looking for a route. ``waited``: seconds since a supervisor gave it back first;
    none if it waits for its first supervisor.
    """

    request_id: str
    lease_counter: int
    model_id: str
    positions: int
    price: Decimal
    tier: str
    is_over: bool
    is_held: bool
    waited: float | None
    state: WaitingState


async def find(sessions: Sessions, *, limit: int) -> Sequence[WaitingJob]:
    """The jobs that wait for a route, and those that are over although no supervisor has them.

    First those that are over, then those that have had a route, then by turn
    (:func:`market.jobs.admission.waiting.turns`), and of equal turns the oldest. ``limit``: how
    many of each model are returned at most, so that those of one model hide no other's.
    """
    turns = waiting.turns()
    is_over = or_(Job.cancel_requested, Job.deadline_at <= func.now())
    columns: tuple[Any, ...] = (
        Job.request_id,
        Job.lease_counter,
        Job.model_id,
        turns.c.positions,
        Job.price_per_token_far.label("price"),
        Job.tier,
        is_over.label("is_over"),
        not_(lease.not_held()).label("is_held"),
        extract("epoch", func.now() - Job.waiting_since).label("waited"),
        Job.waiting_state.label("state"),
    )
    order = (is_over.desc(), Job.epoch == 0, turns.c.turn, Job.started_at, Job.id)
    found = (
        select(
            *columns,
            func.row_number().over(order_by=order).label("place"),
            func.row_number().over(partition_by=Job.model_id, order_by=order).label("of_model"),
        )
        .join(turns, turns.c.id == Job.id)
        .where(
            queries.in_flight(),
            or_(Job.waiting_since.is_not(None), and_(is_over, lease.not_held())),
        )
        .subquery()
    )
    async with sessions() as db:
        rows = await db.execute(
            select(found).where(found.c.of_model <= limit).order_by(found.c.place)
        )
        return [_waiting_job(**row) for row in rows.mappings()]


def _waiting_job(
    *,
    waited: Decimal | None,
    state: dict[str, Any] | None,
    place: int,
    of_model: int,
    **fields: Any,
) -> WaitingJob:
    return WaitingJob(
        waited=None if waited is None else float(waited),
        state=WaitingState.from_json(state),
        **fields,
    )
