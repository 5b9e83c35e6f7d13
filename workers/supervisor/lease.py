"""A lease on a generation: short, renewed, and fenced by a counter.

Whoever holds the newest counter may write. A supervisor that was paused for longer than its lease
finds on its next write that the counter has moved on, and stops. One that hangs renews nothing: it
has to mark its progress (:meth:`Lease.progressed`).
"""

import asyncio
import datetime as dt
from collections.abc import Coroutine
from typing import Any

import structlog
from sqlalchemy import ColumnElement, func, or_, select, update

from market.db import Sessions
from market.jobs import queries
from market.jobs.tables import Job
from market.outages import OUTAGES
from workers.exclusive import Progress, run_while
from workers.supervisor.errors import LeaseLost

STALLED_LEASES = 2
"""Lease periods without progress after which a supervisor counts as stalled: with leases of 6 s
longer than the time limit of any one request to Redis or Postgres."""

log = structlog.get_logger()


class Lease:
    """The right to write one generation's state.

    ``job``: the row as it was when the lease was acquired. ``counter``: fences what is written.
    ``cancel_requested``: as of the last renewal.
    """

    def __init__(self, sessions: Sessions, job: Job, seconds: float) -> None:
        self._sessions = sessions
        self._seconds = seconds
        self.job = job
        self.counter = job.lease_counter
        self.cancel_requested = job.cancel_requested
        self._progress = Progress(STALLED_LEASES * seconds)

    def progressed(self) -> None:
        """Mark that the supervisor's loop has passed through."""
        self._progress.mark()

    async def renew_while(self, work: Coroutine[Any, Any, None]) -> None:
        """Renew the lease as long as the work runs and makes progress; cancel the work if the lease
        is lost.

        Raises:
            LeaseLost: another worker has the lease.
            Stalled: the work made no progress; the lease is still held.
        """
        await run_while(work, self._renew_forever())

    async def release(self) -> None:
        """Let another worker take the lease at once."""
        async with self._sessions.begin() as db:
            await db.execute(
                update(Job)
                .where(
                    Job.id == self.job.id,
                    Job.lease_counter == self.counter,
                )
                .values(lease_expires_at=func.now())
            )

    async def wait(self, state: dict[str, Any]) -> None:
        """Give the lease back with the job waiting for a route, until the dispatcher wakes a
        supervisor for it. The work has to have ended: a renewal would take the lease again.

        Args:
            state: What the next supervisor has to know.

        Raises:
            LeaseLost: another worker has the lease.
        """
        async with self._sessions.begin() as db:
            given_back = await db.scalar(
                update(Job)
                .where(Job.id == self.job.id, Job.lease_counter == self.counter)
                .values(
                    lease_expires_at=func.now(),
                    waiting_since=func.coalesce(Job.waiting_since, func.now()),
                    waiting_state=state,
                )
                .returning(Job.id)
            )
        if given_back is None:
            raise LeaseLost

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 3)
            self._progress.check()
            try:
                await self._renew()
            except OUTAGES as error:  # nobody else gets the lease either, while nobody answers
                log.warning(
                    "lease_not_renewed",
                    request_id=self.job.request_id,
                    error=type(error).__name__,
                )

    async def _renew(self) -> None:
        async with self._sessions.begin() as db:
            cancel_requested = await db.scalar(
                update(Job)
                .where(
                    Job.id == self.job.id,
                    Job.lease_counter == self.counter,
                )
                .values(lease_expires_at=_in(self._seconds))
                .returning(Job.cancel_requested)
            )
        if cancel_requested is None:
            raise LeaseLost
        self.cancel_requested = cancel_requested


async def acquire(sessions: Sessions, request_id: str, seconds: float) -> Lease | None:
    """Acquire a lease of ``seconds`` on a generation; none if the generation has ended, or the
    lease is held."""
    async with sessions.begin() as db:
        job: Job | None = await db.scalar(
            update(Job)
            .where(
                Job.request_id == request_id,
                queries.in_flight(),
                not_held(),
            )
            .values(
                lease_counter=Job.lease_counter + 1,
                lease_expires_at=_in(seconds),
                status="active",
            )
            .returning(Job)
        )
    return None if job is None else Lease(sessions, job, seconds)


async def abandoned(sessions: Sessions, *, grace: float, limit: int) -> list[tuple[str, int]]:
    """Request ids and lease counters of generations that have not ended, whose lease nobody holds
    and that do not wait for a route, the oldest first.

    Args:
        sessions: The database.
        grace: Seconds that a new generation gets to be taken up before it counts.
        limit: How many are returned at most.
    """
    async with sessions() as db:
        rows = await db.execute(
            select(Job.request_id, Job.lease_counter)
            .where(
                queries.in_flight(),
                not_held(),
                Job.waiting_since.is_(None),
                or_(
                    Job.lease_expires_at.is_not(None),
                    Job.started_at < _in(-grace),
                ),
            )
            .order_by(Job.started_at)
            .limit(limit)
        )
        return [(request_id, counter) for request_id, counter in rows]


def not_held() -> ColumnElement[bool]:
    """SQL: nobody holds the lease."""
    return or_(
        Job.lease_expires_at.is_(None),
        Job.lease_expires_at <= func.now(),
    )


def _in(seconds: float) -> ColumnElement[dt.datetime]:
    """SQL: the database's clock, which all workers share, plus seconds."""
    return func.now() + dt.timedelta(seconds=seconds)
