"""The ledger's integrity check finds what is wrong, and nothing else.

Each test breaks one rule, with the database's own rules out of the way.
"""

import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from structlog.testing import capture_logs

from market import ledger
from market.db import Sessions
from market.escrow.tables import ChainCursor, ChainEvent
from market.jobs.tables import NodeContribution
from market.ledger.chain_reconciliation import COMPARISONS
from market.ledger.integrity_check import IntegrityReport, check_integrity, publish
from market.ledger.invariants import INVARIANTS
from market.money import to_units
from market.settlement.tables import Settlement
from tests.support.factories import USER, fund, session
from tests.support.market.ledger import PROVIDER

CONTRACT = "0x" + "cc" * 20
RECIPIENT, FORMER = "0x" + "dd" * 20, "0x" + "ee" * 20
COST, FEE = Decimal(3), Decimal(1)


@pytest.fixture
async def books(sessions: Sessions) -> Sessions:
    """A healthy ledger: four generations, two of them captured and one of those settled."""
    async with sessions.begin() as db:
        await fund(db, amount="20")
        db.add(ChainCursor(contract=CONTRACT, next_block=8))
        for name in ("settled", "captured", "released", "running"):
            job = session(price=Decimal("0.05"), status="active")
            job.request_id = name
            db.add(job)
            await db.flush()
            await ledger.hold(db, job=name, wallet=USER, amount=job.hold_far)
            if name in ("settled", "captured"):
                job.status, job.total_cost_far, job.fee_far = "completed", COST, FEE
                share = NodeContribution(
                    session_id=job.id,
                    node_id="node",
                    wallet_address=PROVIDER,
                    tokens_contributed=1,
                    layers=[0],
                    payment_far=COST - FEE,
                )
                db.add(share)
                await ledger.capture(
                    db,
                    job=name,
                    wallet=USER,
                    held_amount=job.hold_far,
                    shares={PROVIDER: COST - FEE},
                    fee=FEE,
                )
            if name == "released":
                job.status = "failed"
                await ledger.release(db, job=name, wallet=USER, amount=job.hold_far)
            if name == "settled":
                batch = Settlement(id="batch", status="confirmed", debits={}, credits={})
                batch.fee_units, batch.block_number = Decimal(0), 7
                db.add(batch)
                await db.flush()
                job.settlement_id = "batch"
                amounts = {PROVIDER: COST - FEE, ledger.PLATFORM: FEE}
                await ledger.settle(db, batch="batch", amounts=amounts)
    return sessions


@dataclass
class FakeContract:
    """What the contract should say of these books."""

    address: str = CONTRACT
    user: int = to_units(Decimal(20) - COST)
    provider: int = to_units(COST - FEE)
    recipient: int = to_units(FEE)
    former: int = 0
    total: int = to_units(Decimal(20) - COST)
    settled: set[str] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)

    async def deposits(self, wallets: Collection[str], *, block: int) -> dict[str, int]:
        self.asked.add(block)
        return {wallet: {USER: self.user}[wallet] for wallet in wallets}

    async def earnings(self, wallets: Collection[str], *, block: int) -> dict[str, int]:
        self.asked.add(block)
        earned = {PROVIDER: self.provider, RECIPIENT: self.recipient, FORMER: self.former}
        return {wallet: earned[wallet] for wallet in wallets}

    async def total_deposits(self, *, block: int) -> int:
        self.asked.add(block)
        return self.total

    async def fee_recipient(self, *, block: int) -> str:
        return RECIPIENT

    async def settled_batches(self, batches: Collection[str], *, block: int) -> set[str]:
        return self.settled & set(batches)


def found_by(report: IntegrityReport) -> dict[str, int]:
    return {name: count for name, count in report.counts.items() if count}


async def test_healthy_books(books: Sessions) -> None:
    contract = FakeContract()
    report = await check_integrity(books, contract)
    assert report.findings == []
    assert report.counts == dict.fromkeys((*INVARIANTS, *COMPARISONS), 0)
    assert contract.asked == {7}
    assert report.notes == ["Compared with the chain at block 7, the last whose events were read."]


async def test_an_empty_ledger_is_healthy(sessions: Sessions) -> None:
    report = await check_integrity(sessions, FakeContract())
    assert report.violations == 0
    assert report.notes == ["Not compared with the chain: none of its events was read so far."]


def account(owner: str, kind: str) -> str:
    return f"(SELECT id FROM ledger_accounts WHERE owner = '{owner}' AND kind = '{kind}')"


def transaction(kind: str, reference: str) -> str:
    return (
        f"(SELECT id FROM ledger_transactions WHERE kind = '{kind}' AND reference = '{reference}')"
    )


def balance(owner: str, kind: str, change: int) -> str:
    return (
        f"UPDATE ledger_parts SET balance = balance + {change} "
        f"WHERE account_id = {account(owner, kind)} AND part = 0"
    )


def entry(kind: str, reference: str, of: str, change: int) -> str:
    return (
        f"UPDATE ledger_entries SET amount = amount + {change} "
        f"WHERE transaction_id = {transaction(kind, reference)} AND account_id = {of}"
    )


NO_CHECKS = (
    "ALTER TABLE ledger_parts DROP CONSTRAINT check_balance_not_negative",
    "ALTER TABLE spending_caps DROP CONSTRAINT check_within_spending_cap",
    "DROP INDEX uq_ledger_transactions_end",
    "SET LOCAL session_replication_role = replica",
)
"""Takes the database's rules away, as only the superuser can."""

BREAKS: dict[str, tuple[str, list[str]]] = {
    "an entry changed with its balance": (
        "transactions_sum_to_zero",
        [
            entry("settle", "batch", account(PROVIDER, "paid"), 1),
            balance(PROVIDER, "paid", 1),
        ],
    ),
    "a balance changed by hand": ("balances_equal_entries", [balance(USER, "available", 1)]),
    "an account overdrawn": (
        "none_below_zero",
        [
            "INSERT INTO ledger_transactions (kind, reference) VALUES ('gift', 'gift')",
            f"INSERT INTO ledger_entries (transaction_id, account_id, amount) VALUES "
            f"({transaction('gift', 'gift')}, {account(PROVIDER, 'owed')}, -100), "
            f"({transaction('gift', 'gift')}, {account(USER, 'available')}, 100)",
            balance(PROVIDER, "owed", -100),
            balance(USER, "available", 100),
            f"UPDATE ledger_parts SET balance = 0 "
            f"WHERE account_id = {account(PROVIDER, 'owed')} AND part > 0",
            f"UPDATE ledger_parts SET balance = {COST - FEE} - 100 "
            f"WHERE account_id = {account(PROVIDER, 'owed')} AND part = 0",
        ],
    ),
    "a cap exceeded": ("caps_kept", ["UPDATE spending_caps SET maximum = 1, signed = 1"]),
    "a commitment forgotten": (
        "commitments_equal_spending",
        ["UPDATE spending_caps SET committed = committed - 1"],
    ),
    "a cap's row deleted": ("commitments_equal_spending", ["DELETE FROM spending_caps"]),
    "a hold not given back whole": (
        "holds_end_whole",
        [
            entry("release", "released", account(USER, "held"), 1),
            entry("release", "released", account(USER, "available"), -1),
            balance(USER, "held", 1),
            balance(USER, "available", -1),
            "UPDATE spending_caps SET committed = committed + 1",
        ],
    ),
    "a job captured and released": (
        "jobs_are_posted",
        ["INSERT INTO ledger_transactions (kind, reference) VALUES ('release', 'captured')"],
    ),
    "a job ended without its posting": (
        "jobs_are_posted",
        ["UPDATE inference_sessions SET status = 'failed' WHERE request_id = 'running'"],
    ),
    "a hold of nobody's job": (
        "jobs_are_posted",
        ["INSERT INTO ledger_transactions (kind, reference) VALUES ('hold', 'unknown')"],
    ),
    "another cost than was captured": (
        "costs_are_captured",
        ["UPDATE inference_sessions SET total_cost_far = 4 WHERE request_id = 'captured'"],
    ),
    "another fee than was captured": (
        "costs_are_captured",
        ["UPDATE inference_sessions SET fee_far = 0 WHERE request_id = 'captured'"],
    ),
    "another share than was captured": (
        "shares_are_captured",
        ["UPDATE node_contributions SET payment_far = payment_far + 1 WHERE id = 1"],
    ),
    "a share of somebody else": (
        "shares_are_captured",
        [
            "INSERT INTO node_contributions (session_id, node_id, wallet_address, "
            "tokens_contributed, layers, payment_far) SELECT id, 'x', 'x', 1, '{0}', 1 "
            "FROM inference_sessions WHERE request_id = 'captured'"
        ],
    ),
}


@pytest.mark.parametrize(("rule", "statements"), BREAKS.values(), ids=BREAKS)
async def test_one_broken_rule_is_one_finding(
    books: Sessions, rule: str, statements: list[str]
) -> None:
    async with books.begin() as db:
        for statement in (*NO_CHECKS, *statements):
            await db.execute(text(statement))
    report = await check_integrity(books)
    assert found_by(report) == {rule: 1}
    (finding,) = report.findings
    assert finding.check == rule
    assert finding.expected != finding.found


async def test_a_shortfall_is_a_finding(books: Sessions) -> None:
    async with books.begin() as db:
        await ledger.complete_withdrawal(db, reference="out", wallet=USER, amount=Decimal(18))
    report = await check_integrity(books)
    assert found_by(report) == {"no_shortfall": 1}
    assert report.findings[0].subject == f"{USER} shortfall"
    assert Decimal(report.findings[0].found) == 20 - 2 * COST - 5 - 18


async def test_many_findings_of_one_kind_are_counted_and_some_named(books: Sessions) -> None:
    async with books.begin() as db:
        await db.execute(
            text(
                "INSERT INTO ledger_transactions (kind, reference) "
                "SELECT 'hold', 'unknown ' || n FROM generate_series(1, 50) AS n"
            )
        )
    report = await check_integrity(books)
    assert found_by(report) == {"jobs_are_posted": 50}
    assert len(report.findings) == 20


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("user", "deposits_equal_chain"),
        ("provider", "earnings_equal_chain"),
        ("recipient", "earnings_equal_chain"),
        ("total", "total_equals_chain"),
    ],
)
async def test_one_base_unit_of_difference_is_found(books: Sessions, field: str, rule: str) -> None:
    contract = FakeContract()
    setattr(contract, field, getattr(contract, field) + 1)
    assert found_by(await check_integrity(books, contract)) == {rule: 1}


async def test_a_batch_that_the_ledger_has_not_posted_counts_as_the_contract_has_it(
    books: Sessions,
) -> None:
    async with books.begin() as db:
        batch = Settlement(id="open", status="signed", debits={}, credits={}, fee_units=Decimal(0))
        db.add(batch)
        await db.flush()
        await db.execute(
            text("UPDATE inference_sessions SET settlement_id = 'open' WHERE request_id='captured'")
        )
    assert (await check_integrity(books, FakeContract())).violations == 0
    mined = FakeContract(
        user=to_units(20 - 2 * COST),
        total=to_units(20 - 2 * COST),
        provider=to_units(2 * (COST - FEE)),
        recipient=to_units(2 * FEE),
        settled={"open"},
    )
    report = await check_integrity(books, mined)
    assert report.violations == 0
    assert "Of 1 batches that are not posted yet the contract had settled 1" in report.notes[0]


async def test_fees_stay_with_the_recipient_of_their_time(books: Sessions) -> None:
    """As after `setFeeRecipient`."""
    async with books.begin() as db:
        credited = ChainEvent(
            transaction_hash="0x1",
            log_index=0,
            contract=CONTRACT,
            block_number=7,
            block_hash="0x7",
            name="FeeCredited",
            arguments={"batchId": "batch", "recipient": FORMER, "amount": str(to_units(FEE))},
            status="applied",
        )
        db.add(credited)
    assert (
        await check_integrity(books, FakeContract(recipient=0, former=to_units(FEE)))
    ).violations == 0
    assert found_by(await check_integrity(books, FakeContract())) == {"earnings_equal_chain": 2}


async def test_a_batch_posted_beyond_the_block_counts_as_the_contract_had_it(
    books: Sessions,
) -> None:
    async with books.begin() as db:
        await db.execute(text("UPDATE settlements SET block_number = 8"))
    before = FakeContract(user=to_units(Decimal(20)), total=to_units(Decimal(20)))
    before.provider = before.recipient = 0
    assert (await check_integrity(books, before)).violations == 0
    assert found_by(await check_integrity(books, FakeContract())) == {
        "deposits_equal_chain": 1,
        "earnings_equal_chain": 2,
        "total_equals_chain": 1,
    }


async def test_violations_are_measured_and_logged(books: Sessions) -> None:
    async with books.begin() as db:
        await db.execute(text("UPDATE spending_caps SET committed = committed - 1"))
    with capture_logs() as logs:
        publish(await check_integrity(books))

    def violations(name: str) -> float | None:
        return REGISTRY.get_sample_value("far_mesh_ledger_violations", {"check": name})

    assert violations("commitments_equal_spending") == 1
    assert violations("caps_kept") == 0
    assert (REGISTRY.get_sample_value("far_mesh_ledger_checked_timestamp_seconds") or 0) > 0
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(entry["event"], entry["subject"]) for entry in errors] == [("ledger_violation", USER)]


async def test_a_skipped_reconciliation_is_not_called_right(books: Sessions) -> None:
    name = "far_mesh_ledger_violations"
    publish(await check_integrity(books, FakeContract()))
    assert REGISTRY.get_sample_value(name, {"check": "total_equals_chain"}) == 0
    publish(await check_integrity(books))
    assert REGISTRY.get_sample_value(name, {"check": "total_equals_chain"}) is None
    assert REGISTRY.get_sample_value(name, {"check": "caps_kept"}) == 0


def run_command(database_url: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FAR_DATABASE_URL": database_url, "FAR_CONFIG": os.devnull}
    return subprocess.run(
        [sys.executable, "-m", "cli.app", "ledger", "check", *options],
        env={**environment, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_the_command_on_healthy_books(books: Sessions, database_url: str) -> None:
    done = run_command(database_url, "--no-chain")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing wrong." in done.stdout
    assert all(name in done.stdout for name in INVARIANTS)


async def test_the_command_on_broken_books(books: Sessions, database_url: str) -> None:
    async with books.begin() as db:
        await db.execute(text("UPDATE spending_caps SET committed = committed - 1"))
    done = run_command(database_url)
    assert done.returncode == 1
    assert "1 violations." in done.stdout
    assert USER in done.stdout
    assert "Not compared with the chain" in done.stdout
