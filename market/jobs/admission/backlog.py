"""What a model's nodes have to do: its jobs in flight, and which are served before a new one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from market.jobs import queries
from market.jobs.admission import waiting
from market.jobs.tables import Job


@dataclass(frozen=True, slots=True)
class WalletJobs:
    """Jobs of one wallet in flight, and their positions: those that have had a route, and those
    that wait for their first."""

    started: int = 0
    started_positions: int = 0
    waiting: int = 0
    waiting_positions: int = 0

    def served_before(self, turn: int) -> tuple[int, float]:
        """Jobs, and their positions, that are served before another wallet's job with that turn
        (see :func:`market.jobs.admission.waiting.turns`) which comes now, if all that wait are
        equally large."""
        if not self.waiting:
            return self.started, self.started_positions
        before = min(self.waiting, max(0, turn - self.started))
        mean = self.waiting_positions / self.waiting
        return self.started + before, self.started_positions + before * mean

    def with_waiting(self, positions: int) -> "WalletJobs":
        """With one job more that waits."""
        return replace(
            self, waiting=self.waiting + 1, waiting_positions=self.waiting_positions + positions
        )


@dataclass(frozen=True, slots=True)
class Backlog:
    """Jobs in flight of one model, by wallet."""

    wallets: Mapping[str, WalletJobs]

    def served_before(self, wallet: str) -> tuple[int, int]:
        """Jobs, and their positions, that are served before a new job of the wallet."""
        own = self.wallets.get(wallet, WalletJobs())
        turn = own.started + own.waiting + 1
        each = [jobs.served_before(turn) for jobs in self.wallets.values()]
        return sum(jobs for jobs, _ in each), round(sum(positions for _, positions in each))

    def with_waiting(self, jobs: Iterable[tuple[str, int]]) -> "Backlog":
        """With more jobs that wait: wallet and positions of each."""
        wallets = dict(self.wallets)
        for wallet, positions in jobs:
            wallets[wallet] = wallets.get(wallet, WalletJobs()).with_waiting(positions)
        return Backlog(wallets)


async def read_backlog(db: AsyncSession, model_id: str) -> Backlog:
    """The jobs in flight of a model."""
    started = Job.epoch > 0

    def positions(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(waiting.positions()).filter(condition), 0)

    found = await db.execute(
        select(
            Job.user_wallet,
            func.count().filter(started),
            positions(started),
            func.count().filter(~started),
            positions(~started),
        )
        .where(queries.in_flight(), Job.model_id == model_id)
        .group_by(Job.user_wallet)
    )
    return Backlog({wallet: WalletJobs(*figures) for wallet, *figures in found})
