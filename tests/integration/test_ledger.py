"""The ledger's rules, as the database keeps them."""

import asyncio
from decimal import Decimal

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from mesh import ledger
from mesh.db import LedgerAccount, LedgerEntry, LedgerTransaction, Sessions
from mesh.errors import InsufficientBalance

USER = "0x" + "aa" * 20
PROVIDER = "0x" + "bb" * 20


async def deposit(sessions: Sessions, amount: str, wallet: str = USER) -> None:
    async with sessions.begin() as db:
        await ledger.deposit(
            db, reference=f"deposit of {amount}", wallet=wallet, amount=Decimal(amount)
        )


async def balances(sessions: Sessions) -> dict[tuple[str, str], Decimal]:
    async with sessions() as db:
        rows = await db.execute(
            select(LedgerAccount.owner, LedgerAccount.kind, LedgerAccount.balance)
        )
        return {(owner, kind): balance for owner, kind, balance in rows}


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
    await deposit(sessions, "10.0", PROVIDER)

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


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET amount = 0",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
        "UPDATE ledger_transactions SET kind = 'gift'",
        "DELETE FROM ledger_transactions",
        "UPDATE ledger_accounts SET balance = 1000000",
        "DELETE FROM ledger_accounts",
    ],
)
async def test_the_database_refuses_to_change_the_past(sessions: Sessions, statement: str) -> None:
    await deposit(sessions, "5")
    before = await balances(sessions)
    with pytest.raises(DBAPIError, match=r"append-only|only through ledger_entries"):
        async with sessions.begin() as db:
            await db.execute(text(statement))
    assert await balances(sessions) == before


async def test_an_account_cannot_be_born_rich(sessions: Sessions) -> None:
    async with sessions.begin() as db:
        await db.execute(
            insert(LedgerAccount).values(owner=USER, kind="available", balance=Decimal(7))
        )
    assert (await balances(sessions))[ledger.available(USER)] == 0


async def test_the_database_refuses_a_transaction_that_does_not_sum_to_zero(
    sessions: Sessions,
) -> None:
    await deposit(sessions, "5")
    with pytest.raises((DBAPIError, IntegrityError), match="not to zero"):
        async with sessions.begin() as db:
            transaction = await db.scalar(
                insert(LedgerTransaction)
                .values(kind="deposit", reference="lopsided")
                .returning(LedgerTransaction.id)
            )
            account = await db.scalar(select(func.min(LedgerAccount.id)))
            await db.execute(
                insert(LedgerEntry).values(
                    transaction_id=transaction, account_id=account, amount=Decimal("-1")
                )
            )
    assert (await balances(sessions))[ledger.available(USER)] == Decimal("5")
