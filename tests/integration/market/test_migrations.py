"""The migrated schema and the one in code are the same, and what is there comes through."""

import asyncio
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

import market
from market import db, ledger
from market.catalog.prices import Prices
from market.db import Base
from market.escrow.tables import ChainEvent
from market.jobs import queries
from market.ledger.integrity_check import check_integrity
from market.ledger.tables import SpendingCap
from market.migrations import config, upgrade
from stack.servers import Postgres
from tests.support.factories import USER
from tests.support.market.ledger import PROVIDER, balances


async def test_migrations_build_the_schema_in_code(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


def test_alembic_sees_every_table() -> None:
    """In a process that has imported nothing else."""
    tables = "from market.migrations.tables import METADATA; print(*sorted(METADATA.tables))"
    seen = subprocess.run(
        [sys.executable, "-c", tables], capture_output=True, text=True, check=True
    ).stdout.split()
    for module in pkgutil.walk_packages(market.__path__, "market."):
        if not module.name.startswith("market.migrations."):
            importlib.import_module(module.name)
    assert seen == sorted(Base.metadata.tables)


def test_there_is_no_way_back() -> None:
    """A downgrade that nobody runs does not work: the way back is a backup."""
    revisions = list(ScriptDirectory.from_config(config("")).walk_revisions())
    assert len(revisions) >= 5
    assert [one.revision for one in revisions if hasattr(one.module, "downgrade")] == []


@pytest.fixture
def bare_url(postgres: Postgres) -> Iterator[str]:
    """A database without a schema."""
    postgres.execute("CREATE DATABASE bare")
    yield postgres.url("bare")
    postgres.execute("DROP DATABASE bare WITH (FORCE)")


OLD_BOOKS = [
    "INSERT INTO deposits (transaction_hash, log_index, block_number, wallet_address, amount_far) "
    f"VALUES ('0xd', 3, 7, '{USER}', 5)",
    "INSERT INTO chain_cursors VALUES ('0xe', 8)",
    "INSERT INTO settlements (id, status, debits, credits, fee_units) VALUES ('batch', "
    f"""'confirmed', '{{"{USER}": "1{"0" * 18}"}}', '{{"{PROVIDER}": "9{"0" * 17}"}}', 1e17)""",
    "INSERT INTO inference_sessions (id, request_id, user_wallet, model_id, status, deadline_at, "
    "prompt_tokens, max_tokens, temperature, top_p, seed, request_digest, price_per_token_far, "
    "hold_far, total_cost_far, fee_far, settlement_id) VALUES "
    f"(gen_random_uuid(), 'done', '{USER}', 'm', 'completed', now(), 1, 2, 0, 1, 0, '', 1, 2, 1, "
    f"0.1, 'batch'), (gen_random_uuid(), 'runs', '{USER}', 'm', 'active', now(), 1, 1, 0, 1, 0, "
    "'', 1, 1, NULL, NULL, NULL)",
    "INSERT INTO node_contributions (session_id, node_id, wallet_address, tokens_contributed, "
    f"layers, payment_far) SELECT id, 'n', '{PROVIDER}', 1, '{{0}}', 0.9 "
    "FROM inference_sessions WHERE request_id = 'done'",
    "INSERT INTO ledger_accounts (owner, kind) VALUES ('chain', 'clearing'), "
    f"('{USER}', 'available'), ('{USER}', 'held'), ('{PROVIDER}', 'owed'), ('{PROVIDER}', 'paid'), "
    "('platform', 'owed'), ('platform', 'paid')",
    "INSERT INTO ledger_transactions (kind, reference, created_at) "
    "VALUES ('deposit', '0xd:3', '2026-01-01'), "
    "('hold', 'done', '2026-01-02'), ('capture', 'done', '2026-01-03'), "
    "('settle', 'batch', '2026-01-04'), ('hold', 'runs', '2026-01-05')",
    "INSERT INTO ledger_entries (transaction_id, account_id, amount) "
    "SELECT tx, id, amount FROM ledger_accounts JOIN (VALUES "
    f"(1, 'chain', 'clearing', -5), (1, '{USER}', 'available', 5), "
    f"(2, '{USER}', 'available', -2), (2, '{USER}', 'held', 2), "
    f"(3, '{USER}', 'held', -2), (3, '{USER}', 'available', 1), (3, '{PROVIDER}', 'owed', 0.9), "
    "(3, 'platform', 'owed', 0.1), "
    f"(4, '{PROVIDER}', 'owed', -0.9), (4, '{PROVIDER}', 'paid', 0.9), "
    "(4, 'platform', 'owed', -0.1), (4, 'platform', 'paid', 0.1), "
    f"(5, '{USER}', 'available', -1), (5, '{USER}', 'held', 1)"
    ") AS entry(tx, owner, kind, amount) USING (owner, kind) ORDER BY tx",
]
"""A deposit, a generation that was paid and one that runs, as the first schema had them."""


async def test_old_books_come_through(bare_url: str) -> None:
    await asyncio.to_thread(command.upgrade, config(bare_url), "0002")
    engine, sessions = db.connect(bare_url)
    async with sessions.begin() as session:
        for statement in OLD_BOOKS:
            await session.execute(text(statement))
    await upgrade(bare_url)
    assert await balances(sessions) == {
        ledger.clearing(): -5,
        ledger.available(USER): 3,
        ledger.held(USER): 1,
        ledger.owed(PROVIDER): 0,
        ledger.paid(PROVIDER): Decimal("0.9"),
        ledger.owed(ledger.PLATFORM): 0,
        ledger.paid(ledger.PLATFORM): Decimal("0.1"),
    }
    assert (await check_integrity(sessions)).findings == []
    async with sessions.begin() as session:
        cap = await session.get_one(SpendingCap, USER)
        assert (cap.signed, cap.committed) == (2, 2)
        event = await session.get_one(ChainEvent, ("0xd", 3))
        assert (event.reference, event.arguments["amount"]) == ("0xd:3", str(5 * 10**18))
        then = await session.scalar(text("SELECT timestamptz '2026-01-02 12:00'"))
        assert then is not None
        past = await ledger.balances_at(session, then, owner=USER)
        assert past == {ledger.available(USER): 3, ledger.held(USER): 2}
        runs = await queries.find(session, "runs")
        assert runs is not None
        assert queries.prices_of(runs) == Prices(Decimal(1), Decimal(0), Decimal(0))
        assert await ledger.release(session, job="runs", wallet=USER, amount=Decimal(1))
    assert (await balances(sessions))[ledger.available(USER)] == 4
    await engine.dispose()
