"""Postings of withdrawals, and reversals of what a reorg undoes."""

from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from market import ledger
from market.db import Sessions
from market.ledger.errors import InsufficientBalance
from tests.support.factories import USER
from tests.support.market.ledger import PROVIDER, balances, cap, deposit


async def request(sessions: Sessions, reference: str, amount: str) -> bool:
    async with sessions.begin() as db:
        return await ledger.request_withdrawal(
            db, reference=reference, wallet=USER, amount=Decimal(amount)
        )


async def withdraw(sessions: Sessions, amount: str, reference: str = "out") -> bool:
    async with sessions.begin() as db:
        return await ledger.complete_withdrawal(
            db, reference=reference, wallet=USER, amount=Decimal(amount)
        )


async def cancel(sessions: Sessions, reference: str = "cancelled") -> bool:
    async with sessions.begin() as db:
        return await ledger.cancel_withdrawal(db, reference=reference, wallet=USER)


async def hold(sessions: Sessions, amount: str, job: str = "job") -> bool:
    async with sessions.begin() as db:
        return await ledger.hold(db, job=job, wallet=USER, amount=Decimal(amount))


async def release(sessions: Sessions, amount: str, job: str = "job") -> None:
    async with sessions.begin() as db:
        await ledger.release(db, job=job, wallet=USER, amount=Decimal(amount))


async def reverse(sessions: Sessions, kind: str, reference: str) -> bool:
    async with sessions.begin() as db:
        return await ledger.reverse(db, kind=kind, reference=reference)


async def user(sessions: Sessions) -> tuple[Decimal, Decimal]:
    """What the user may spend, and what is set aside."""
    found = await balances(sessions)
    return found[ledger.available(USER)], found.get(ledger.withdrawing(USER), Decimal(0))


async def lost(sessions: Sessions) -> Decimal:
    return -(await balances(sessions)).get(ledger.shortfall(USER), Decimal(0))


async def test_a_requested_withdrawal_is_set_aside_and_paid_out(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    assert await request(sessions, "asked", "4")
    assert await user(sessions) == (6, 4)
    with pytest.raises(InsufficientBalance):
        await hold(sessions, "7")
    assert await withdraw(sessions, "4")
    assert await user(sessions) == (6, 0)
    assert (await balances(sessions))[ledger.clearing()] == -6


async def test_a_request_replaces_the_one_before(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    await request(sessions, "first", "9")
    await request(sessions, "second", "2")
    assert await user(sessions) == (8, 2)
    await request(sessions, "third", "5")
    assert await user(sessions) == (5, 5)


async def test_a_cancelled_withdrawal_is_available_again(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    await request(sessions, "asked", "4")
    assert await cancel(sessions)
    assert await user(sessions) == (10, 0)
    assert await hold(sessions, "10")


async def test_each_posting_of_a_withdrawal_happens_once(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    for expected in (True, False):
        assert await request(sessions, "asked", "4") is expected
    for expected in (True, False):
        assert await withdraw(sessions, "3") is expected
    assert await user(sessions) == (7, 0)
    await request(sessions, "again", "1")
    for expected in (True, False):
        assert await cancel(sessions) is expected
    assert await user(sessions) == (7, 0)


async def test_what_was_requested_and_not_paid_out_is_available_again(sessions: Sessions) -> None:
    """Some of what was asked for has been debited before it was paid out."""
    await deposit(sessions, "10")
    await request(sessions, "asked", "4")
    await withdraw(sessions, "3")
    assert await user(sessions) == (7, 0)


async def test_held_money_is_set_aside_when_it_is_released(sessions: Sessions) -> None:
    """Else a user could ask for everything, and spend what a running generation gives back."""
    await deposit(sessions, "10")
    await hold(sessions, "4")
    await request(sessions, "asked", "10")
    assert await user(sessions) == (0, 6)
    await release(sessions, "4")
    with pytest.raises(InsufficientBalance):
        await hold(sessions, "1", "another")
    await withdraw(sessions, "10")
    assert await user(sessions) == (0, 0)
    assert await lost(sessions) == 0


async def test_a_deposit_does_not_free_a_requested_withdrawal(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    await hold(sessions, "4")
    await request(sessions, "asked", "10")
    await deposit(sessions, "5")
    with pytest.raises(InsufficientBalance):
        await hold(sessions, "2", "another")
    assert await hold(sessions, "1", "within")


async def test_held_money_that_was_paid_out_is_a_shortfall(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    await hold(sessions, "4")
    await request(sessions, "asked", "8")
    with capture_logs() as logs:
        await withdraw(sessions, "8")
    assert await user(sessions) == (0, 0)
    assert await lost(sessions) == 2
    assert (await balances(sessions))[ledger.held(USER)] == 4
    assert [(entry["event"], entry["log_level"], entry["amount_far"]) for entry in logs] == [
        ("ledger_shortfall", "error", "2")
    ]


async def test_a_deposit_is_undone_and_comes_again(sessions: Sessions) -> None:
    for _ in range(2):
        async with sessions.begin() as db:
            for expected in (True, False):
                again = await ledger.deposit(db, reference="tx:0", wallet=USER, amount=Decimal(5))
                assert again is expected
        assert await user(sessions) == (5, 0)
        for expected in (True, False):
            assert await reverse(sessions, "deposit", "tx:0") is expected
        assert await user(sessions) == (0, 0)


async def test_what_was_never_posted_is_not_undone(sessions: Sessions) -> None:
    assert not await reverse(sessions, "deposit", "never")
    with pytest.raises(ValueError, match="does not come from the chain"):
        await reverse(sessions, "hold", "job")


async def test_an_undone_deposit_that_was_spent_is_a_shortfall(sessions: Sessions) -> None:
    await deposit(sessions, "1")
    async with sessions.begin() as db:
        await ledger.deposit(db, reference="tx:0", wallet=USER, amount=Decimal(5))
    await hold(sessions, "4")
    await reverse(sessions, "deposit", "tx:0")
    assert await user(sessions) == (0, 0)
    assert await lost(sessions) == 3
    assert await cap(sessions) == (1_000_000, 4)


async def test_an_undone_deposit_is_taken_from_what_is_set_aside(sessions: Sessions) -> None:
    async with sessions.begin() as db:
        await ledger.deposit(db, reference="tx:0", wallet=USER, amount=Decimal(5))
    await deposit(sessions, "1")
    await request(sessions, "asked", "6")
    await reverse(sessions, "deposit", "tx:0")
    assert await user(sessions) == (0, 1)
    assert await lost(sessions) == 0


async def test_a_payment_out_is_undone(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    await hold(sessions, "4")
    await request(sessions, "asked", "8")
    await withdraw(sessions, "8")
    assert await reverse(sessions, "withdrawn", "out")
    assert await user(sessions) == (0, 6)
    assert await lost(sessions) == 0
    assert await reverse(sessions, "request_withdrawal", "asked")
    assert await user(sessions) == (6, 0)
    assert await hold(sessions, "6", "another")


async def test_a_settlement_is_undone_and_comes_again(sessions: Sessions) -> None:
    await deposit(sessions, "10")
    await hold(sessions, "4")
    amounts = {PROVIDER: Decimal(3), ledger.PLATFORM: Decimal(1)}
    async with sessions.begin() as db:
        await ledger.capture(
            db,
            job="job",
            wallet=USER,
            held_amount=Decimal(4),
            shares={PROVIDER: Decimal(3)},
            fee=Decimal(1),
        )
    for _ in range(2):
        async with sessions.begin() as db:
            assert await ledger.settle(db, batch="batch", amounts=amounts)
        assert (await balances(sessions))[ledger.paid(PROVIDER)] == 3
        assert await reverse(sessions, "settle", "batch")
        found = await balances(sessions)
        assert (found[ledger.owed(PROVIDER)], found[ledger.paid(PROVIDER)]) == (3, 0)
