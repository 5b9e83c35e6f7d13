"""Refusal at once of submissions that would be refused once they had waited for their turn."""

import asyncio
import time
from dataclasses import dataclass

from market.catalog.models import Model
from market.jobs.admission.backlog import Backlog, read_backlog
from market.jobs.admission.decision import check_start
from market.jobs.admission.throughput import throughput
from market.jobs.errors import Overloaded
from market.jobs.submission.under_way import UnderWay
from market.resources import Resources
from market.routing.coverage import Coverage, coverage_of

FRESH_SECONDS = 0.25
"""Seconds after which what was read of a model is read anew."""

STALE_SECONDS = 2.0
"""Seconds for which it is used meanwhile."""

WATCHED_SECONDS = 2.0
"""Seconds after a refusal for which each submission is looked at."""

STRICTER = 0.75
"""Of the longest wait for a start, what is allowed here, so that hardly anybody is refused after he
has waited for his turn: the rate that was measured falls by a fifth from one slot to the next."""

CHECKED_FROM = 2
"""Submissions under way as of which each further one is looked at."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What decides about submissions. ``at``: when the jobs were read, on the monotonic clock.
    ``rate``: positions a second."""

    at: float
    coverage: Coverage
    rate: float | None
    backlog: Backlog


class EarlyRefusals:
    """What is known of the models' backlogs in one process.

    Nothing is looked at that comes alone, so that it does not wait for a reading; under a load, and
    after a refusal, one reading serves all who come until the next. It is an estimate: the
    submission's transaction decides.
    """

    def __init__(self, resources: Resources, under_way: UnderWay) -> None:
        self._resources = resources
        self._under_way = under_way
        self._watched_until: dict[str, float] = {}
        self._last: dict[str, Reading] = {}
        self._running: dict[str, asyncio.Task[Reading]] = {}
        self._turn = asyncio.Lock()
        """All models' readings together take one connection to Postgres."""

    async def check(self, model: Model, wallet: str, positions: int) -> None:
        """
        Args:
            positions: Positions of the job, or fewer if they are not known yet.

        Raises:
            Overloaded: the job would start later than jobs may be expected to, and not for want of
                nodes that could serve it at all, which is told when it is quoted.
        """
        watched = time.monotonic() < self._watched_until.get(model.id, 0)
        if not watched and len(self._under_way) < CHECKED_FROM:
            return
        reading = await self._reading(model)
        if reading.coverage.missing:
            return
        unseen = self._under_way.unseen(model.id, reading.at)
        backlog = reading.backlog.with_waiting((each.wallet, each.positions) for each in unseen)
        generation = self._resources.settings.generation
        try:
            check_start(
                generation,
                reading.coverage,
                reading.rate,
                backlog.served_before(wallet),
                positions,
                max_wait=STRICTER * generation.max_start_wait,
            )
        except Overloaded:
            if reading.coverage.route_for(positions) is not None:
                raise

    def watch(self, model_id: str) -> None:
        """Look at each submission for a while: one was refused."""
        self._watched_until[model_id] = time.monotonic() + WATCHED_SECONDS

    async def _reading(self, model: Model) -> Reading:
        """A reading: a little old while the next one is made, which takes a while under load."""
        now = time.monotonic()
        last = self._last.get(model.id)
        if model.id not in self._running and (last is None or now - last.at > FRESH_SECONDS):
            task = self._running[model.id] = asyncio.create_task(self._read(model))
            task.add_done_callback(_retrieve)
        if last is not None and now - last.at < STALE_SECONDS:
            return last
        return await asyncio.shield(self._running[model.id])

    async def _read(self, model: Model) -> Reading:
        try:
            coverage = await coverage_of(self._resources.redis, model)
            rate = await throughput(self._resources.redis, model.id)
            async with self._turn, self._resources.sessions() as db:
                at = time.monotonic()
                backlog = await read_backlog(db, model.id)
            reading = self._last[model.id] = Reading(at, coverage, rate, backlog)
            return reading
        finally:
            del self._running[model.id]


def _retrieve(task: asyncio.Task[Reading]) -> None:
    """Whoever asked may have gone away: then nobody looks at the error."""
    if not task.cancelled():
        task.exception()
