"""What an API key's jobs cost: counted with the hold, corrected at the end, within the limits."""

import asyncio
import datetime as dt
from decimal import Decimal

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError

from market import ledger
from market.db import Sessions
from market.identity import api_keys
from market.identity.errors import ApiKeyRevoked
from market.identity.principal import Scope
from market.identity.tables import ApiKey
from market.ledger.errors import KeyLimitReached
from market.ledger.key_spending import Spent, spent_by
from tests.support.factories import USER
from tests.support.market.ledger import PROVIDER, balances, cap, deposit

DAY = dt.date(2026, 2, 27)


@pytest.fixture
async def key_id(sessions: Sessions) -> str:
    await deposit(sessions, "100")
    terms = api_keys.KeyTerms(name="app", scopes=[Scope.GENERATE])
    async with sessions.begin() as db:
        row, _ = await api_keys.make(db, USER, terms)
    return row.key_id


async def limit(sessions: Sessions, key_id: str, **limits: object) -> None:
    values = {
        f"limit_{period}_far": None if amount is None else Decimal(str(amount))
        for period, amount in limits.items()
    }
    async with sessions.begin() as db:
        await api_keys.change(db, USER, key_id, values)


async def hold(
    sessions: Sessions, key_id: str, job: str, amount: str = "1", day: dt.date = DAY
) -> bool:
    async with sessions.begin() as db:
        key = ledger.KeyDay(key_id, day)
        return await ledger.hold(db, job=job, wallet=USER, amount=Decimal(amount), key=key)


async def capture(sessions: Sessions, key_id: str, job: str, cost: str, held: str = "1") -> bool:
    async with sessions.begin() as db:
        return await ledger.capture(
            db,
            job=job,
            wallet=USER,
            held_amount=Decimal(held),
            shares={PROVIDER: Decimal(cost)},
            fee=Decimal(0),
            key=ledger.KeyDay(key_id, DAY),
        )


async def release(sessions: Sessions, key_id: str, job: str) -> bool:
    async with sessions.begin() as db:
        key = ledger.KeyDay(key_id, DAY)
        return await ledger.release(db, job=job, wallet=USER, amount=Decimal(1), key=key)


async def spent(sessions: Sessions, key_id: str, day: dt.date = DAY) -> Spent:
    async with sessions() as db:
        return (await spent_by(db, [key_id], day))[key_id]


async def test_a_job_counts_by_its_hold_and_then_by_its_cost(
    sessions: Sessions, key_id: str
) -> None:
    for job in ("captured", "released"):
        await hold(sessions, key_id, job)
    assert await spent(sessions, key_id) == Spent(*[Decimal(2)] * 3)
    await capture(sessions, key_id, "captured", "0.000000000000000001")
    await release(sessions, key_id, "released")
    assert await spent(sessions, key_id) == Spent(*[Decimal("0.000000000000000001")] * 3)


async def test_what_is_posted_twice_counts_once(sessions: Sessions, key_id: str) -> None:
    posted = [await hold(sessions, key_id, "job") for _ in range(3)]
    assert posted == [True, False, False]
    assert (await spent(sessions, key_id)).total == 1
    posted = [await capture(sessions, key_id, "job", "0.25") for _ in range(3)]
    assert posted == [True, False, False]
    assert (await spent(sessions, key_id)).total == Decimal("0.25")


@pytest.mark.parametrize("period", ["day", "month", "total"])
async def test_a_limit_is_kept_by_32_holds_at_once(
    sessions: Sessions, key_id: str, period: str
) -> None:
    await limit(sessions, key_id, **{period: "0.75"})
    before = await balances(sessions)

    attempts = (hold(sessions, key_id, f"job {number}", "0.1") for number in range(32))
    results = await asyncio.gather(*attempts, return_exceptions=True)
    refused = [each for each in results if isinstance(each, KeyLimitReached)]
    assert results.count(True) == 7
    assert [error.problem()["limit"] for error in refused] == [period] * 25
    assert await spent(sessions, key_id) == Spent(*[Decimal("0.7")] * 3)
    after = await balances(sessions)
    assert after[ledger.held(USER)] == Decimal("0.7")
    assert after[ledger.available(USER)] == before[ledger.available(USER)] - Decimal("0.7")
    assert (await cap(sessions))[1] == Decimal("0.7")


async def test_holds_and_ends_of_one_key_at_once_add_up(sessions: Sessions, key_id: str) -> None:
    async def live(number: int) -> None:
        await hold(sessions, key_id, f"job {number}")
        if number % 2:
            await capture(sessions, key_id, f"job {number}", "0.01")
        else:
            await release(sessions, key_id, f"job {number}")

    await asyncio.gather(*map(live, range(32)))
    assert (await spent(sessions, key_id)).total == Decimal("0.16")


async def test_a_limit_may_be_spent_to_its_last_unit(sessions: Sessions, key_id: str) -> None:
    await limit(sessions, key_id, day="1", month="1", total="1")
    await hold(sessions, key_id, "whole")
    with pytest.raises(KeyLimitReached, match="leaves 0 FAR"):
        await hold(sessions, key_id, "unit", "0.000000000000000001")
    await release(sessions, key_id, "whole")
    await hold(sessions, key_id, "again")


async def test_days_and_months_are_counted_apart(sessions: Sessions, key_id: str) -> None:
    await limit(sessions, key_id, day="1", month="2", total="3")
    next_day, month = DAY + dt.timedelta(days=1), dt.date(2026, 3, 1)
    await hold(sessions, key_id, "first")
    with pytest.raises(KeyLimitReached, match="a day leaves 0 FAR"):
        await hold(sessions, key_id, "more", "0.1")
    await hold(sessions, key_id, "next day", day=next_day)
    assert await spent(sessions, key_id, next_day) == Spent(Decimal(1), Decimal(2), Decimal(2))
    await limit(sessions, key_id, day="9")
    with pytest.raises(KeyLimitReached, match="a month leaves 0 FAR"):
        await hold(sessions, key_id, "more", "0.1", next_day)
    await hold(sessions, key_id, "next month", day=month)
    await limit(sessions, key_id, month=None)
    with pytest.raises(KeyLimitReached, match="in all leaves 0 FAR"):
        await hold(sessions, key_id, "more", "0.1", month)
    assert await spent(sessions, key_id, month) == Spent(Decimal(1), Decimal(1), Decimal(3))


async def test_a_job_that_ends_after_midnight_belongs_to_the_day_before(
    sessions: Sessions, key_id: str
) -> None:
    """By the day that the job's own row has, whenever it ends."""
    await hold(sessions, key_id, "late")
    await hold(sessions, key_id, "early", day=DAY + dt.timedelta(days=1))
    await capture(sessions, key_id, "late", "0.25")
    assert (await spent(sessions, key_id)).day == Decimal("0.25")
    assert (await spent(sessions, key_id, DAY + dt.timedelta(days=1))).day == 1


async def test_one_keys_spending_is_not_anothers(sessions: Sessions, key_id: str) -> None:
    async with sessions.begin() as db:
        terms = api_keys.KeyTerms(name="other", scopes=[Scope.GENERATE])
        other, _ = await api_keys.make(db, USER, terms)
    await limit(sessions, key_id, total="1")
    await hold(sessions, other.key_id, "other's", "5")
    await hold(sessions, key_id, "own")
    async with sessions() as db:
        found = await spent_by(db, [key_id, other.key_id], DAY)
    assert [found[each].total for each in (key_id, other.key_id)] == [1, 5]


async def test_a_limit_that_is_lowered_below_what_is_spent_leaves_nothing(
    sessions: Sessions, key_id: str
) -> None:
    await hold(sessions, key_id, "running", "5")
    await limit(sessions, key_id, total="1")
    with pytest.raises(KeyLimitReached, match="leaves 0 FAR"):
        await hold(sessions, key_id, "more", "0.1")
    assert await capture(sessions, key_id, "running", "5", "5")


async def test_no_hold_comes_after_the_revocation(sessions: Sessions, key_id: str) -> None:
    """Also of a request that was authenticated before it."""
    async with sessions.begin() as db:
        await api_keys.revoke(db, USER, key_id)
    with pytest.raises(ApiKeyRevoked):
        await hold(sessions, key_id, "late")
    assert await spent(sessions, key_id) == Spent()
    assert ledger.held(USER) not in await balances(sessions)


async def test_a_revocation_waits_for_the_hold_that_was_first(
    sessions: Sessions, key_id: str
) -> None:
    async with sessions.begin() as db:
        key = ledger.KeyDay(key_id, DAY)
        await ledger.hold(db, job="job", wallet=USER, amount=Decimal(1), key=key)
        async with sessions.begin() as other:
            await other.execute(text("SET LOCAL lock_timeout = 50"))
            with pytest.raises(DBAPIError, match="lock timeout"):
                await api_keys.revoke(other, USER, key_id)
            await other.rollback()


@pytest.mark.parametrize("step", ["hold", "capture", "release"])
async def test_a_process_that_is_killed_before_the_commit_has_counted_nothing(
    sessions: Sessions, key_id: str, step: str
) -> None:
    """Its connection ends after the money was moved and counted; then another does it again."""
    key = ledger.KeyDay(key_id, DAY)
    if step != "hold":
        await hold(sessions, key_id, "job")
    before = (await spent(sessions, key_id), await balances(sessions), await cap(sessions))
    with pytest.raises(DBAPIError):
        async with sessions.begin() as db:
            if step == "hold":
                await ledger.hold(db, job="job", wallet=USER, amount=Decimal(1), key=key)
            elif step == "capture":
                await ledger.capture(
                    db,
                    job="job",
                    wallet=USER,
                    held_amount=Decimal(1),
                    shares={PROVIDER: Decimal("0.5")},
                    fee=Decimal(0),
                    key=key,
                )
            else:
                await ledger.release(db, job="job", wallet=USER, amount=Decimal(1), key=key)
            assert (await spent_by(db, [key_id], DAY))[key_id] != before[0]
            pid = await db.scalar(select(func.pg_backend_pid()))
            async with sessions.begin() as killer:
                await killer.execute(select(func.pg_terminate_backend(pid)))
            await db.execute(text("SELECT 1"))
    after = (await spent(sessions, key_id), await balances(sessions), await cap(sessions))
    assert after == before
    if step == "hold":
        assert await hold(sessions, key_id, "job")
    elif step == "capture":
        assert await capture(sessions, key_id, "job", "0.5")
    else:
        assert await release(sessions, key_id, "job")
    expected = {"hold": Decimal(1), "capture": Decimal("0.5"), "release": Decimal(0)}
    assert (await spent(sessions, key_id)).total == expected[step]


async def test_the_database_lets_no_spending_fall_below_zero(
    sessions: Sessions, key_id: str
) -> None:
    await hold(sessions, key_id, "job")
    with pytest.raises(DBAPIError, match="check_key_spending_not_negative"):
        async with sessions.begin() as db:
            await db.execute(text("UPDATE key_spending SET committed = -1"))
    with pytest.raises(DBAPIError, match="check_key_limits_not_negative"):
        async with sessions.begin() as db:
            await db.execute(update(ApiKey).values(limit_month_far=-1))
