"""Any past state of the ledger can be rebuilt."""

import asyncio
import datetime as dt
import itertools
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from market import db, ledger
from market.db import Sessions
from market.ledger import Account
from market.ledger.errors import InsufficientBalance
from tests.support.factories import USER, fund
from tests.support.market.ledger import deposit

_numbers = itertools.count()


@dataclass(frozen=True)
class Step:
    """Something that happens to one of two wallets."""

    kind: str
    wallet: int
    units: int


STEPS = st.lists(
    st.builds(
        Step,
        kind=st.sampled_from(["deposit", "hold", "capture", "release", "request", "cancel", "out"]),
        wallet=st.integers(0, 1),
        units=st.integers(1, 10**20),
    ),
    min_size=1,
    max_size=12,
)


class History:
    """Steps taken on wallets of this example alone, and every balance after each of them."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._name = f"example {next(_numbers)}"
        self.wallets = [f"{self._name} {number}" for number in range(2)]
        self._held: defaultdict[str, list[tuple[str, Decimal]]] = defaultdict(list)
        self.states: list[tuple[dt.datetime, dict[Account, Decimal]]] = []

    async def take(self, step: Step) -> None:
        try:
            async with self._sessions.begin() as db:
                await self._move(db, step, self.wallets[step.wallet])
        except InsufficientBalance:
            pass
        async with self._sessions() as db:
            instant = await db.scalar(select(func.clock_timestamp()))
            rows = await db.execute(
                select(ledger.BALANCES).where(ledger.BALANCES.c.owner.in_(self.wallets))
            )
            assert instant is not None
            self.states.append((instant, {Account(*row[:2]): row.balance for row in rows}))

    async def _move(self, db: AsyncSession, step: Step, wallet: str) -> None:
        amount = Decimal(step.units).scaleb(-18)
        reference = f"{self._name} {next(_numbers)}"
        held = self._held[wallet]
        match step.kind:
            case "deposit":
                await fund(db, wallet=wallet, amount=amount)
            case "hold":
                await ledger.raise_cap(db, wallet=wallet, maximum=Decimal(10**6))
                await ledger.hold(db, job=reference, wallet=wallet, amount=amount)
                held.append((reference, amount))
            case "capture" if held:
                job, most = held.pop()
                fee = min(amount, most)
                await ledger.capture(
                    db, job=job, wallet=wallet, held_amount=most, shares={}, fee=fee
                )
            case "release" if held:
                job, most = held.pop()
                await ledger.release(db, job=job, wallet=wallet, amount=most)
            case "request":
                await ledger.request_withdrawal(
                    db, reference=reference, wallet=wallet, amount=amount
                )
            case "cancel":
                await ledger.cancel_withdrawal(db, reference=reference, wallet=wallet)
            case "out":
                await ledger.complete_withdrawal(
                    db, reference=reference, wallet=wallet, amount=amount
                )


async def check_history(url: str, steps: list[Step]) -> None:
    engine, sessions = db.connect(url)
    try:
        history = History(sessions)
        for step in steps:
            await history.take(step)
        async with sessions() as session:
            for instant, balances in history.states:
                whole = await ledger.balances_at(session, instant)
                assert sum(whole.values()) == 0
                for wallet in history.wallets:
                    own = await ledger.balances_at(session, instant, owner=wallet)
                    assert own == {
                        account: amount
                        for account, amount in whole.items()
                        if account.owner == wallet
                    }
                    for account, balance in balances.items():
                        if account.owner == wallet:
                            assert own.get(account, 0) == balance
    finally:
        await engine.dispose()


@given(steps=STEPS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_past_state_of_a_random_history_is_rebuilt(
    database_url: str, steps: list[Step]
) -> None:
    asyncio.run(check_history(database_url, steps))


async def test_a_past_state_has_no_uncommitted_entries(sessions: Sessions) -> None:
    """A hold in a transaction that began before the deposit it spends."""
    async with sessions.begin() as late:
        await late.scalar(select(func.now()))
        await deposit(sessions, "5")
        between = await late.scalar(select(func.clock_timestamp()))
        await ledger.hold(late, job="job", wallet=USER, amount=Decimal(2))
    assert between is not None
    async with sessions() as db:
        state = await ledger.balances_at(db, between, owner=USER)
    assert state == {ledger.available(USER): 5}


async def test_before_the_first_entry_there_is_nothing(sessions: Sessions) -> None:
    await deposit(sessions, "5")
    async with sessions() as db:
        assert await ledger.balances_at(db, dt.datetime(2020, 1, 1, tzinfo=dt.UTC)) == {}


async def test_one_owners_past_is_read_from_an_index_alone(
    sessions: Sessions, engine: AsyncEngine
) -> None:
    for _ in range(3):
        await deposit(sessions, "5")
    async with engine.connect() as connection:
        for way in ("seqscan", "bitmapscan"):
            await connection.execute(text(f"SET LOCAL enable_{way} = off"))
        plan = await connection.scalars(
            text(
                "EXPLAIN SELECT sum(amount) FROM ledger_entries JOIN ledger_accounts "
                f"ON id = account_id WHERE owner = '{USER}' AND posted_at <= now() GROUP BY kind"
            )
        )
        assert "Index Only Scan using idx_ledger_entries_account" in "\n".join(plan)
