"""Postings of a generation: deposits, holds, captures, releases, spending caps."""

import asyncio
from decimal import Decimal

import pytest
from sqlalchemy.exc import IntegrityError

from market import ledger
from market.db import Sessions
from market.ledger.errors import InsufficientBalance, SpendingCapExceeded
from market.money import from_units
from tests.support.factories import USER, fund
from tests.support.market.ledger import PROVIDER, balances, cap, deposit


async def test_the_life_of_a_payment(sessions: Sessions) -> None:
    await deposit(sessions, "5")
    async with sessions.begin() as db:
        assert await ledger.hold(db, job="job", wallet=USER, amount=Decimal("2"))
        assert await ledger.capture(
            db,
            job="job",
            wallet=USER,
            held_amount=Decimal("2"),
            shares={PROVIDER: Decimal("0.9")},
            fee=Decimal("0.1"),
        )
        assert await ledger.settle(
            db, batch="batch", amounts={PROVIDER: Decimal("0.9"), ledger.PLATFORM: Decimal("0.1")}
        )
    assert await balances(sessions) == {
        ledger.clearing(): Decimal("-5"),
        ledger.available(USER): Decimal("4"),
        ledger.held(USER): Decimal("0"),
        ledger.owed(PROVIDER): Decimal("0"),
        ledger.paid(PROVIDER): Decimal("0.9"),
        ledger.owed(ledger.PLATFORM): Decimal("0"),
        ledger.paid(ledger.PLATFORM): Decimal("0.1"),
    }


async def test_a_posting_happens_once_however_often_it_is_tried(sessions: Sessions) -> None:
    await deposit(sessions, "5")
    for expected in (True, False, False):
        async with sessions.begin() as db:
            assert (await ledger.hold(db, job="job", wallet=USER, amount=Decimal("2"))) is expected
    assert (await balances(sessions))[ledger.held(USER)] == Decimal("2")


async def test_a_hold_beyond_the_balance_is_refused_whole(sessions: Sessions) -> None:
    await deposit(sessions, "1")
    with pytest.raises(InsufficientBalance, match="2 FAR"):
        async with sessions.begin() as db:
            await ledger.hold(db, job="job", wallet=USER, amount=Decimal("2"))
    assert (await balances(sessions))[ledger.available(USER)] == Decimal("1")


async def test_no_balance_below_zero_under_32_concurrent_holds(sessions: Sessions) -> None:
    await deposit(sessions, "1")

    async def hold(number: int) -> bool:
        try:
            async with sessions.begin() as db:
                await ledger.hold(db, job=f"job {number}", wallet=USER, amount=Decimal("0.1"))
        except InsufficientBalance:
            return False
        return True

    held = await asyncio.gather(*(hold(number) for number in range(32)))
    assert sum(held) == 10
    after = await balances(sessions)
    assert after[ledger.available(USER)] == 0
    assert after[ledger.held(USER)] == Decimal("1")


async def test_transactions_that_cross_do_not_deadlock(sessions: Sessions) -> None:
    """Two wallets pay each other's owner at the same time, many times over."""
    await deposit(sessions, "10", USER)
    await deposit(sessions, "10", PROVIDER)

    async def pay(number: int, payer: str, payee: str) -> None:
        async with sessions.begin() as db:
            job = f"{payer} {number}"
            await ledger.hold(db, job=job, wallet=payer, amount=Decimal("0.1"))
            await ledger.capture(
                db,
                job=job,
                wallet=payer,
                held_amount=Decimal("0.1"),
                shares={payee: Decimal("0.1")},
                fee=Decimal(0),
            )

    pairs = [(USER, PROVIDER), (PROVIDER, USER)]
    await asyncio.gather(*(pay(n, *pair) for n in range(20) for pair in pairs))
    after = await balances(sessions)
    assert after[ledger.owed(USER)] == after[ledger.owed(PROVIDER)] == Decimal("2")


async def test_many_captures_at_once_for_one_provider_and_its_payment(sessions: Sessions) -> None:
    """Parts of a balance add up, and are paid out together."""
    await deposit(sessions, "32")

    async def serve(number: int) -> None:
        async with sessions.begin() as db:
            await ledger.hold(db, job=f"job {number}", wallet=USER, amount=Decimal(1))
        async with sessions.begin() as db:
            await ledger.capture(
                db,
                job=f"job {number}",
                wallet=USER,
                held_amount=Decimal(1),
                shares={PROVIDER: Decimal("0.9")},
                fee=Decimal("0.1"),
            )

    await asyncio.gather(*map(serve, range(32)))
    earned, fees = Decimal("28.8"), Decimal("3.2")
    assert (await balances(sessions))[ledger.owed(PROVIDER)] == earned
    async with sessions.begin() as db:
        await ledger.settle(db, batch="batch", amounts={PROVIDER: earned, ledger.PLATFORM: fees})
    after = await balances(sessions)
    assert after[ledger.owed(PROVIDER)] == after[ledger.owed(ledger.PLATFORM)] == 0
    assert after[ledger.paid(PROVIDER)] == earned


async def test_nobody_is_paid_more_than_is_owed(sessions: Sessions) -> None:
    await test_many_captures_at_once_for_one_provider_and_its_payment(sessions)
    with pytest.raises(IntegrityError, match="check_balance_not_negative"):
        async with sessions.begin() as db:
            await ledger.settle(db, batch="another", amounts={PROVIDER: Decimal("0.1")})


async def test_a_hold_commits_to_the_cap_until_the_generation_ends(sessions: Sessions) -> None:
    async with sessions.begin() as db:
        await fund(db, amount="10", maximum=Decimal(5))
        await ledger.hold(db, job="captured", wallet=USER, amount=Decimal(2))
        await ledger.hold(db, job="released", wallet=USER, amount=Decimal(3))
    assert await cap(sessions) == (5, 5)
    async with sessions.begin() as db:
        await ledger.capture(
            db,
            job="captured",
            wallet=USER,
            held_amount=Decimal(2),
            shares={PROVIDER: Decimal("0.5")},
            fee=Decimal("0.5"),
        )
        await ledger.release(db, job="released", wallet=USER, amount=Decimal(3))
    assert await cap(sessions) == (5, 1)


async def test_a_hold_beyond_the_cap_is_refused_whole(sessions: Sessions) -> None:
    async with sessions.begin() as db:
        await fund(db, amount="10", maximum=Decimal(5))
        await ledger.hold(db, job="job", wallet=USER, amount=Decimal(4))
    with pytest.raises(SpendingCapExceeded, match=r"2 FAR.*raiseCap"):
        async with sessions.begin() as db:
            await ledger.hold(db, job="another", wallet=USER, amount=Decimal(2))
    assert (await balances(sessions))[ledger.held(USER)] == 4
    assert await cap(sessions) == (5, 4)


async def test_without_a_signed_cap_nothing_can_be_held(sessions: Sessions) -> None:
    async with sessions.begin() as db:
        await ledger.deposit(db, reference="deposit", wallet=USER, amount=Decimal(10))
    with pytest.raises(SpendingCapExceeded):
        async with sessions.begin() as db:
            await ledger.hold(db, job="job", wallet=USER, amount=Decimal(1))


async def test_a_low_balance_is_reported_before_a_low_spending_cap(sessions: Sessions) -> None:
    with pytest.raises(InsufficientBalance):
        async with sessions.begin() as db:
            await ledger.hold(db, job="job", wallet=USER, amount=Decimal(1))


async def test_a_hold_tried_again_commits_once(sessions: Sessions) -> None:
    await deposit(sessions, "5")
    for _ in range(3):
        async with sessions.begin() as db:
            await ledger.hold(db, job="job", wallet=USER, amount=Decimal(2))
    assert (await cap(sessions))[1] == 2


async def test_concurrent_copies_of_a_hold_commit_once(sessions: Sessions) -> None:
    await deposit(sessions, "5")

    async def hold() -> bool:
        async with sessions.begin() as db:
            return await ledger.hold(db, job="job", wallet=USER, amount=Decimal(2))

    assert sum(await asyncio.gather(*(hold() for _ in range(16)))) == 1
    assert (await cap(sessions))[1] == 2


async def test_no_cap_is_exceeded_under_32_concurrent_holds(sessions: Sessions) -> None:
    async with sessions.begin() as db:
        await fund(db, amount="100", maximum=Decimal(1))

    async def hold(number: int) -> bool:
        try:
            async with sessions.begin() as db:
                await ledger.hold(db, job=f"job {number}", wallet=USER, amount=Decimal("0.1"))
        except SpendingCapExceeded:
            return False
        return True

    assert sum(await asyncio.gather(*map(hold, range(32)))) == 10
    assert await cap(sessions) == (1, 1)


async def test_a_lowered_cap_keeps_what_is_committed_and_nothing_more(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    async with sessions.begin() as db:
        await ledger.hold(db, job="running", wallet=USER, amount=Decimal(4))
        await ledger.lower_cap(db, wallet=USER, maximum=Decimal(1))
    assert await cap(sessions) == (4, 4)
    async with sessions.begin() as db:
        await ledger.release(db, job="running", wallet=USER, amount=Decimal(4))
    with pytest.raises(SpendingCapExceeded):
        async with sessions.begin() as db:
            await ledger.hold(db, job="too much", wallet=USER, amount=Decimal(2))
    async with sessions.begin() as db:
        assert await ledger.hold(db, job="within", wallet=USER, amount=Decimal(1))


async def test_an_old_raise_read_again_lowers_nothing(sessions: Sessions) -> None:
    async with sessions.begin() as db:
        await ledger.raise_cap(db, wallet=USER, maximum=Decimal(5))
        await ledger.raise_cap(db, wallet=USER, maximum=Decimal(3))
    assert await cap(sessions) == (5, 0)


async def test_no_amount_that_the_contract_can_hold_is_rounded(sessions: Sessions) -> None:
    """29 digits: one more than Python's decimals have unless they are told otherwise."""
    most, one = from_units(2**96 - 1), from_units(1)
    async with sessions.begin() as db:
        await fund(db, amount=most, maximum=most)
        await ledger.hold(db, job="job", wallet=USER, amount=most)
        await ledger.capture(
            db,
            job="job",
            wallet=USER,
            held_amount=most,
            shares={PROVIDER: one, "another": from_units(2**96 - 4)},
            fee=one,
        )
    after = await balances(sessions)
    assert after[ledger.available(USER)] == one
    assert after[ledger.clearing()] == Decimal("-79228162514.264337593543950335")


async def test_nobody_is_charged_more_than_was_held(sessions: Sessions) -> None:
    await deposit(sessions, "5")
    async with sessions.begin() as db:
        await ledger.hold(db, job="job", wallet=USER, amount=Decimal(2))
    with pytest.raises(ValueError, match="2 FAR"):
        async with sessions.begin() as db:
            await ledger.capture(
                db,
                job="job",
                wallet=USER,
                held_amount=Decimal(2),
                shares={PROVIDER: Decimal(2)},
                fee=Decimal("0.1"),
            )
    assert (await balances(sessions))[ledger.held(USER)] == 2
