"""Random movements of money, and records of them that are kept apart from the ledger.

What the ledger should contain follows from these records alone, so that the integrity check at the
end compares two accounts that were kept independently.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from decimal import Decimal

from asyncpg.exceptions import PostgresConnectionError, PostgresError
from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger
from market.db import Sessions
from market.ledger.errors import InsufficientBalance, SpendingCapExceeded
from market.money import ZERO, to_units

FUNDS = Decimal(1_000_000)
CAP = Decimal(2_000_000)
BEYOND = Decimal(1_500_000)
"""FAR that each user begins with and has signed for, and more than anybody has."""

FEE = Decimal("0.05")

WEIGHTS = {"hold": 40, "capture": 32, "release": 8, "deposit": 8, "refund": 6, "settle": 4}
"""How often each operation comes. A refund is a withdrawal: asked for, and then paid out. One in
fifty deposits is undone by a reorg and comes again."""

MODES = {"once": 81, "again": 10, "twice at once": 4, "killed": 1, "overdraft": 4}
"""How often an operation is done plainly; one done before is repeated; two connections do the same
at once; its connection is killed, and it is tried again; and how often a hold exceeds what is
available."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One movement, under a reference of its own: doing it again changes nothing."""

    kind: str
    run: Callable[[AsyncSession], Awaitable[bool]]
    record: Callable[[], None]
    """Write the operation into the benchmark's own records."""


@dataclass(slots=True)
class ExpectedJob:
    """One generation in the benchmark's own records; amounts in FAR."""

    id: str
    wallet: str
    hold: Decimal
    status: str = "active"
    fee: Decimal = ZERO
    shares: dict[str, Decimal] = field(default_factory=dict)
    batch: str | None = None

    @property
    def cost(self) -> Decimal:
        return sum(self.shares.values(), self.fee)


@dataclass(slots=True)
class ExpectedMoney:
    """The benchmark's own records, amounts in FAR. ``wrong``: answers that should not have come."""

    users: list[str]
    providers: list[str]
    jobs: list[ExpectedJob] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    deposits: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class ExpectedContract:
    """The escrow contract by the benchmark's records, for the ledger's reconciliation."""

    address = "0x" + "00" * 20
    recipient = "0x" + "ff" * 20

    def __init__(self, expected: ExpectedMoney) -> None:
        self._deposits = dict(expected.deposits)
        self._earned: defaultdict[str, Decimal] = defaultdict(Decimal)
        for job in expected.jobs:
            if job.batch is not None:
                self._deposits[job.wallet] -= job.cost
                self._earned[self.recipient] += job.fee
                for provider, share in job.shares.items():
                    self._earned[provider] += share

    async def deposits(self, wallets: Collection[str], *, block: int) -> dict[str, int]:
        return {wallet: to_units(self._deposits.get(wallet, ZERO)) for wallet in wallets}

    async def earnings(self, wallets: Collection[str], *, block: int) -> dict[str, int]:
        return {wallet: to_units(self._earned[wallet]) for wallet in wallets}

    async def total_deposits(self, *, block: int) -> int:
        return to_units(sum(self._deposits.values(), ZERO))

    async def fee_recipient(self, *, block: int) -> str:
        return self.recipient

    async def settled_batches(self, batches: Collection[str], *, block: int) -> Collection[str]:
        return batches


class RandomClient:
    """A client with one connection, which ends the jobs that it began, on wallets that all
    share."""

    def __init__(
        self,
        name: int,
        sessions: Sessions,
        expected: ExpectedMoney,
        seed: int,
        countdown: "OperationCountdown",
    ) -> None:
        self._name = name
        self._sessions = sessions
        self._expected = expected
        self._random = random.Random(f"{seed} {name}")
        self._countdown = countdown
        self._numbers = itertools.count()
        self._open: list[ExpectedJob] = []
        self._unsettled: list[ExpectedJob] = []
        self._done: list[Operation] = []

    async def run_all(self) -> None:
        """Run operations until the countdown is at zero."""
        modes, weights = list(MODES), list(MODES.values())
        while self._countdown.take():
            (mode,) = self._random.choices(modes, weights)
            if mode == "again" and self._done:
                await self._repeat()
            elif mode == "overdraft":
                await self._overdraft()
            else:
                await self._new(mode)

    async def _new(self, mode: str) -> None:
        operation = self._next()
        if mode == "twice at once":
            self._countdown.take()
            changed = sum(await asyncio.gather(self._do(operation), self._do(operation)))
        elif mode == "killed":
            self._countdown.take()
            await self._killed(operation)
            await self._do(operation)
            changed = 1
        else:
            began = time.perf_counter()
            changed = await self._do(operation)
            self._expected.seconds[operation.kind].append(time.perf_counter() - began)
            mode = "once"
        self._expected.outcomes[mode] += 1
        self._expect(changed == 1, f"{operation.kind} {mode} happened {changed} times")
        operation.record()
        self._remember(operation)

    async def _repeat(self) -> None:
        operation = self._random.choice(self._done)
        self._expect(not await self._do(operation), f"{operation.kind} again happened again")
        self._expected.outcomes["again"] += 1

    async def _overdraft(self) -> None:
        """A hold beyond the balance and beyond the signed cap, which has to be refused."""
        amount = self._random.choice((BEYOND, BEYOND * 2))
        refused = False
        try:
            async with self._sessions.begin() as db:
                await ledger.hold(db, job=self._reference(), wallet=self._user(), amount=amount)
        except (InsufficientBalance, SpendingCapExceeded):
            refused = True
        self._expect(refused, f"a hold of {amount} FAR was not refused")
        self._expected.outcomes["overdraft"] += 1

    async def _do(self, operation: Operation) -> bool:
        async with self._sessions.begin() as db:
            return await operation.run(db)

    async def _killed(self, operation: Operation) -> None:
        """Lose the connection, or the server's side of it, before or in the middle of the commit.

        Done to the driver, under SQLAlchemy: it would open all connections anew.
        """
        how = self._random.choice(("lost", "server", "committing"))
        async with self._sessions() as db:
            await operation.run(db)
            connection = await db.connection()
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            if how == "server":
                with contextlib.suppress(PostgresError, PostgresConnectionError):
                    await driver.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            elif how == "committing":
                committing = asyncio.create_task(driver.execute("COMMIT"))
                await asyncio.sleep(self._random.random() * 0.002)
                driver.terminate()
                await asyncio.gather(committing, return_exceptions=True)
            await connection.invalidate()

    def _next(self) -> Operation:
        (kind,) = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if kind == "capture" and self._open:
            return self._capture(self._open.pop(self._random.randrange(len(self._open))))
        if kind == "release" and self._open:
            return self._release(self._open.pop(self._random.randrange(len(self._open))))
        if kind == "settle" and self._unsettled:
            return self._settle()
        if kind == "deposit":
            return self._deposit()
        if kind == "refund":
            return self._refund()
        return self._hold()

    def _hold(self) -> Operation:
        job = ExpectedJob(self._reference(), self._user(), self._amount(1, 10_000))

        def record() -> None:
            self._open.append(job)
            self._expected.jobs.append(job)

        return Operation(
            "hold",
            lambda db: ledger.hold(db, job=job.id, wallet=job.wallet, amount=job.hold),
            record,
        )

    def _capture(self, job: ExpectedJob) -> Operation:
        cost = job.hold * self._random.randrange(101) / 100
        fee = (cost * FEE).quantize(Decimal("0.000001"))
        providers = self._random.sample(self._expected.providers, 3)
        share = ((cost - fee) / 3).quantize(Decimal("0.000001"))
        shares = dict(zip(providers, (share, share, cost - fee - 2 * share), strict=True))

        def record() -> None:
            job.status, job.fee, job.shares = "completed", fee, shares
            self._unsettled.append(job)

        return Operation(
            "capture",
            lambda db: ledger.capture(
                db, job=job.id, wallet=job.wallet, held_amount=job.hold, shares=shares, fee=fee
            ),
            record,
        )

    def _release(self, job: ExpectedJob) -> Operation:
        def record() -> None:
            job.status = "failed"

        return Operation(
            "release",
            lambda db: ledger.release(db, job=job.id, wallet=job.wallet, amount=job.hold),
            record,
        )

    def _deposit(self) -> Operation:
        reference, user, amount = self._reference(), self._user(), self._amount(1, 100_000)

        async def undo_and_repeat(db: AsyncSession) -> bool:
            changed = await ledger.deposit(db, reference=reference, wallet=user, amount=amount)
            if changed:
                await ledger.reverse(db, kind="deposit", reference=reference)
                await ledger.deposit(db, reference=reference, wallet=user, amount=amount)
            return changed

        def record() -> None:
            self._expected.deposits[user] += amount

        if self._random.random() < 0.02:
            return Operation("deposit, taken back and come again", undo_and_repeat, record)
        return Operation(
            "deposit",
            lambda db: ledger.deposit(db, reference=reference, wallet=user, amount=amount),
            record,
        )

    def _refund(self) -> Operation:
        reference, user, amount = self._reference(), self._user(), self._amount(1, 10_000)

        async def run(db: AsyncSession) -> bool:
            await ledger.request_withdrawal(db, reference=reference, wallet=user, amount=amount)
            return await ledger.complete_withdrawal(
                db, reference=reference, wallet=user, amount=amount
            )

        def record() -> None:
            self._expected.deposits[user] -= amount

        return Operation("refund", run, record)

    def _settle(self) -> Operation:
        jobs, self._unsettled = self._unsettled, []
        batch = f"batch {self._reference()}"
        amounts: defaultdict[str, Decimal] = defaultdict(Decimal)
        for job in jobs:
            amounts[ledger.PLATFORM] += job.fee
            for provider, share in job.shares.items():
                amounts[provider] += share

        def record() -> None:
            self._expected.batches.append(batch)
            for job in jobs:
                job.batch = batch

        return Operation(
            "settle", lambda db: ledger.settle(db, batch=batch, amounts=amounts), record
        )

    def _remember(self, operation: Operation) -> None:
        if len(self._done) < 1000:
            self._done.append(operation)
        else:
            self._done[self._random.randrange(1000)] = operation

    def _reference(self) -> str:
        return f"{self._name}-{next(self._numbers)}"

    def _user(self) -> str:
        """A random user, some of them much more often than others."""
        users = self._expected.users
        return users[int(len(users) * self._random.random() ** 2)]

    def _amount(self, low: int, high: int) -> Decimal:
        return Decimal(self._random.randrange(low, high)).scaleb(-3)

    def _expect(self, right: bool, otherwise: str) -> None:
        if not right:
            self._expected.wrong.append(otherwise)


class OperationCountdown:
    """Counts operations down to zero, for all clients together."""

    def __init__(self, count: int, report_progress: Callable[[int], None]) -> None:
        self.left = count
        self._report_progress = report_progress

    def take(self) -> bool:
        """Take one operation; whether there was one left."""
        self.left -= 1
        if self.left % 1000 == 0:
            self._report_progress(self.left)
        return self.left >= 0


async def fund(sessions: Sessions, expected: ExpectedMoney) -> None:
    """Make every user's first deposit, and raise the spending cap."""
    for user in expected.users:
        async with sessions.begin() as db:
            await ledger.deposit(db, reference=f"first of {user}", wallet=user, amount=FUNDS)
            await ledger.raise_cap(db, wallet=user, maximum=CAP)
        expected.deposits[user] += FUNDS
