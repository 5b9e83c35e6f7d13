"""The ledger's rules, as the database keeps them: also against a role that may do everything with
the tables except own them."""

import contextlib
import datetime as dt
from decimal import Decimal

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from market import ledger
from market.db import Sessions
from market.ledger.tables import LedgerAccount, LedgerEntry, LedgerTransaction
from stack.servers import Postgres
from tests.support.factories import USER
from tests.support.market.ledger import balances, cap, deposit


@pytest.fixture
async def as_application(postgres: Postgres, engine: AsyncEngine) -> str:
    """SET ROLE to one that has every privilege on the tables, and owns none."""
    async with engine.begin() as db:
        await db.execute(
            text(
                "DO $$ BEGIN CREATE ROLE far_application; "
                "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
            )
        )
        await db.execute(
            text("GRANT ALL ON ALL TABLES IN SCHEMA public TO far_application WITH GRANT OPTION")
        )
    return "SET LOCAL ROLE far_application"


CHANGES = [
    "UPDATE ledger_entries SET amount = 0",
    "DELETE FROM ledger_entries",
    "TRUNCATE ledger_entries",
    "TRUNCATE ledger_transactions CASCADE",
    "UPDATE ledger_transactions SET kind = 'gift'",
    "DELETE FROM ledger_transactions",
    "UPDATE ledger_accounts SET owner = 'me'",
    "DELETE FROM ledger_accounts",
    "TRUNCATE ledger_accounts CASCADE",
    "UPDATE ledger_parts SET balance = 1000000",
    "UPDATE ledger_parts SET may_be_negative = true",
    "INSERT INTO ledger_parts SELECT account_id, 17, 1000000, false FROM ledger_parts LIMIT 1",
    "DELETE FROM ledger_parts",
    "TRUNCATE ledger_parts",
    "MERGE INTO ledger_entries USING ledger_accounts ON id = account_id WHEN MATCHED THEN DELETE",
]


@pytest.mark.parametrize("statement", CHANGES)
async def test_the_database_refuses_to_change_the_past(sessions: Sessions, statement: str) -> None:
    await deposit(sessions, "5")
    before = await balances(sessions)
    with pytest.raises(DBAPIError, match=r"append-only|only through ledger_entries"):
        async with sessions.begin() as db:
            await db.execute(text(statement))
    assert await balances(sessions) == before


BYPASSES = [
    *CHANGES,
    "ALTER TABLE ledger_entries DISABLE TRIGGER ALL",
    "ALTER TABLE ledger_parts DROP CONSTRAINT check_balance_not_negative",
    "DROP TRIGGER ledger_entries_apply ON ledger_entries",
    "SET session_replication_role = replica",
    "CREATE OR REPLACE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RETURN NULL; END $$",
]


@pytest.mark.parametrize("statement", BYPASSES)
async def test_the_application_cannot_bypass_the_rules(
    sessions: Sessions, as_application: str, statement: str
) -> None:
    await deposit(sessions, "5")
    before = await balances(sessions)
    refusal = r"append-only|only through|must be owner|permission denied"
    with pytest.raises(DBAPIError, match=refusal):
        async with sessions.begin() as db:
            await db.execute(text(as_application))
            await db.execute(text(statement))
    assert await balances(sessions) == before


UNDER_A_TRIGGER = [
    "UPDATE ledger_parts SET balance = balance + 1000000 WHERE NOT may_be_negative",
    "INSERT INTO ledger_parts SELECT account_id, 17, 1000000, false FROM ledger_parts LIMIT 1",
    "DELETE FROM ledger_parts",
    "TRUNCATE ledger_parts",
]


@pytest.mark.parametrize("statement", UNDER_A_TRIGGER)
async def test_a_trigger_of_the_application_cannot_bypass_the_rules(
    sessions: Sessions, as_application: str, statement: str
) -> None:
    """Anybody may make one, on a temporary table; what it does, a trigger does."""
    await deposit(sessions, "5")
    before = await balances(sessions)
    with contextlib.suppress(DBAPIError):
        async with sessions.begin() as db:
            await db.execute(text(as_application))
            await db.execute(text("CREATE TEMPORARY TABLE lever (n INTEGER)"))
            await db.execute(
                text(
                    "CREATE FUNCTION pg_temp.pull() RETURNS trigger LANGUAGE plpgsql AS "
                    f"$$ BEGIN {statement}; RETURN NULL; END $$"
                )
            )
            await db.execute(
                text(
                    "CREATE TRIGGER pull AFTER INSERT ON lever "
                    "FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.pull()"
                )
            )
            await db.execute(text("INSERT INTO lever VALUES (1)"))
    assert await balances(sessions) == before


async def test_the_application_can_do_what_it_should(
    sessions: Sessions, as_application: str
) -> None:
    await deposit(sessions, "5")
    async with sessions.begin() as db:
        await db.execute(text(as_application))
        assert await ledger.hold(db, job="job", wallet=USER, amount=Decimal(1))
        assert await ledger.deposit(db, reference="new", wallet="new", amount=Decimal(1))
    assert (await balances(sessions))[ledger.held(USER)] == 1


async def test_a_new_account_is_empty(sessions: Sessions) -> None:
    async with sessions.begin() as db:
        await db.execute(insert(LedgerAccount).values(owner=USER, kind="available"))
    assert await balances(sessions) == {ledger.available(USER): 0}


async def lopsided(db: AsyncSession, amount: str = "-1") -> None:
    transaction = await db.scalar(
        insert(LedgerTransaction)
        .values(kind="deposit", reference="lopsided")
        .returning(LedgerTransaction.id)
    )
    account = await db.scalar(select(func.min(LedgerAccount.id)))
    await db.execute(
        insert(LedgerEntry).values(
            transaction_id=transaction, account_id=account, amount=Decimal(amount)
        )
    )


@pytest.mark.parametrize("first", ["SELECT 1", "SET CONSTRAINTS ALL DEFERRED"])
async def test_the_database_refuses_a_transaction_that_does_not_sum_to_zero(
    sessions: Sessions, first: str
) -> None:
    await deposit(sessions, "5")
    with pytest.raises(IntegrityError, match="not to zero"):
        async with sessions.begin() as db:
            await db.execute(text(first))
            await lopsided(db)
    assert (await balances(sessions))[ledger.available(USER)] == Decimal("5")


async def test_an_old_transaction_takes_no_more_entries(sessions: Sessions) -> None:
    """Not even some that balance."""
    await deposit(sessions, "5")
    with pytest.raises(IntegrityError, match="no ledger transaction"):
        async with sessions.begin() as db:
            transaction = await db.scalar(select(LedgerTransaction.id))
            accounts = await db.scalars(
                insert(LedgerAccount)
                .values([{"owner": owner, "kind": "owed"} for owner in ("me", "you")])
                .returning(LedgerAccount.id)
            )
            await db.execute(
                insert(LedgerEntry),
                [
                    {"transaction_id": transaction, "account_id": account, "amount": Decimal(0)}
                    for account in accounts
                ],
            )


async def test_copy_is_held_to_the_same_rules(sessions: Sessions, engine: AsyncEngine) -> None:
    await deposit(sessions, "5")
    before = await balances(sessions)
    async with engine.connect() as db:
        rows = await db.execute(
            text("SELECT t.id, a.id FROM ledger_transactions t, ledger_accounts a LIMIT 1")
        )
        (transaction, account), *_ = rows.all()
        driver = (await db.get_raw_connection()).driver_connection
        assert driver is not None
        with pytest.raises(Exception, match=r"not to zero|duplicate key"):
            await driver.copy_records_to_table(
                "ledger_entries",
                records=[(transaction, account + 1_000, Decimal(1))],
                columns=["transaction_id", "account_id", "amount"],
            )
    assert await balances(sessions) == before


async def test_an_entry_needs_an_account(sessions: Sessions) -> None:
    with pytest.raises(IntegrityError, match="no ledger account"):
        async with sessions.begin() as db:
            transaction = await db.scalar(
                insert(LedgerTransaction)
                .values(kind="deposit", reference="astray")
                .returning(LedgerTransaction.id)
            )
            await db.execute(
                insert(LedgerEntry).values(
                    [
                        {"transaction_id": transaction, "account_id": 998, "amount": Decimal(1)},
                        {"transaction_id": transaction, "account_id": 999, "amount": Decimal(-1)},
                    ]
                )
            )


async def test_the_database_dates_entries(sessions: Sessions) -> None:
    await deposit(sessions, "5")
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    with pytest.raises(IntegrityError, match="dated by the database"):
        async with sessions.begin() as db:
            transaction = await db.scalar(
                insert(LedgerTransaction)
                .values(kind="deposit", reference="old")
                .returning(LedgerTransaction.id)
            )
            account = await db.scalar(select(func.min(LedgerAccount.id)))
            await db.execute(
                insert(LedgerEntry).values(
                    transaction_id=transaction,
                    account_id=account,
                    amount=Decimal(0),
                    posted_at=yesterday,
                )
            )


async def test_a_hold_ends_once(sessions: Sessions) -> None:
    await deposit(sessions, "5")
    async with sessions.begin() as db:
        await ledger.hold(db, job="job", wallet=USER, amount=Decimal(1))
        await ledger.hold(db, job="another", wallet=USER, amount=Decimal(1))
        await ledger.release(db, job="job", wallet=USER, amount=Decimal(1))
    with pytest.raises(IntegrityError, match="uq_ledger_transactions_end"):
        async with sessions.begin() as db:
            await ledger.capture(
                db, job="job", wallet=USER, held_amount=Decimal(1), shares={}, fee=Decimal(1)
            )


async def test_the_database_refuses_to_commit_more_than_is_signed(sessions: Sessions) -> None:
    await deposit(sessions, "5")
    before = await cap(sessions)
    for change in ("committed = maximum + 1", "committed = -1", "signed = maximum + 1"):
        with pytest.raises(IntegrityError, match="check_within_spending_cap"):
            async with sessions.begin() as db:
                await db.execute(text(f"UPDATE spending_caps SET {change}"))
    assert await cap(sessions) == before


@pytest.mark.parametrize(
    ("kind", "reference", "occurrence"),
    [("deposit", "twice", 1), ("reverse", "deposit:never", 0)],
)
async def test_only_what_was_reversed_comes_again(
    sessions: Sessions, kind: str, reference: str, occurrence: int
) -> None:
    async with sessions.begin() as db:
        await ledger.deposit(db, reference="twice", wallet=USER, amount=Decimal(1))
    with pytest.raises(DBAPIError, match=r"not reversed|nothing to reverse"):
        async with sessions.begin() as db:
            await db.execute(
                insert(LedgerTransaction).values(
                    kind=kind, reference=reference, occurrence=occurrence
                )
            )
