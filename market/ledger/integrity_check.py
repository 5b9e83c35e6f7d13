"""The ledger's integrity check: its invariants, and its reconciliation with the contract."""

import time
from dataclasses import dataclass

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.db import Sessions
from market.escrow.reader import EscrowReader
from market.ledger import chain_reconciliation
from market.ledger.chain_reconciliation import EscrowState
from market.ledger.invariants import INVARIANTS, Finding
from market.settings.payments import PaymentsSettings

log = structlog.get_logger()

MAX_FINDINGS = 20
"""Findings of one check that a report names; the others are counted."""


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """What an integrity check found."""

    counts: dict[str, int]
    """Violations by check, zeros included."""
    findings: list[Finding]
    """At most `MAX_FINDINGS` of each check."""
    notes: list[str]
    """What a reader should know of the reconciliation."""

    @property
    def violations(self) -> int:
        """Violations of all checks together."""
        return sum(self.counts.values())


async def check_integrity(sessions: Sessions, escrow: EscrowState | None = None) -> IntegrityReport:
    """Check all invariants on one snapshot of the database; reconcile it with the contract, if one
    is given.

    Raises:
        ChainError: the contract cannot be read.
    """
    counts: dict[str, int] = {}
    findings: list[Finding] = []
    notes: list[str] = []
    expected = None
    async with sessions() as db:
        await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        await db.execute(text("SET TRANSACTION READ ONLY"))
        for name, invariant in INVARIANTS.items():
            found, counts[name] = await _violations(db, name, invariant)
            findings += found
        if escrow is not None:
            expected = await chain_reconciliation.expected_state(db, escrow)
    if escrow is not None and expected is None:
        notes.append("Not compared with the chain: none of its events was read so far.")
    elif escrow is not None and expected is not None:
        notes.append(_compared_at(expected))
        differences = await chain_reconciliation.differences(expected, escrow)
        for name in chain_reconciliation.COMPARISONS:
            of_check = [found for found in differences if found.check == name]
            counts[name] = len(of_check)
            findings += of_check[:MAX_FINDINGS]
    return IntegrityReport(counts=counts, findings=findings, notes=notes)


async def check_with_chain(sessions: Sessions, payments: PaymentsSettings) -> IntegrityReport:
    """`check_integrity`, with the contract that the settings name, if they name one.

    Raises:
        ChainError: the contract cannot be read.
    """
    if not payments.escrow_contract:
        return await check_integrity(sessions)
    async with EscrowReader.from_settings(payments) as escrow:
        return await check_integrity(sessions, escrow)


def publish(report: IntegrityReport) -> None:
    """Set this process's metrics to a report's counts, and log each of its findings as an error.

    A comparison that was not made, since the chain could not be read, has no metric.
    """
    metrics.ledger_violations.clear()
    for name, count in report.counts.items():
        metrics.ledger_violations.labels(name).set(count)
    metrics.ledger_checked.set(time.time())
    for found in report.findings:
        log.error(
            "ledger_violation",
            check=found.check,
            subject=found.subject,
            expected=found.expected,
            found=found.found,
        )
    log.info("ledger_checked", checks=len(report.counts), violations=report.violations)


async def _violations(db: AsyncSession, name: str, invariant: str) -> tuple[list[Finding], int]:
    rows = (
        await db.execute(
            text(
                "SELECT subject, expected::text, found::text, count(*) OVER () AS total "
                f"FROM ({invariant}) AS violations ORDER BY subject LIMIT {MAX_FINDINGS}"
            )
        )
    ).all()
    total = rows[0].total if rows else 0
    return [Finding(name, row.subject, row.expected, row.found) for row in rows], total


def _compared_at(expected: chain_reconciliation.ExpectedState) -> str:
    note = f"Compared with the chain at block {expected.block}, the last whose events were read."
    if expected.open_batches:
        note += (
            f" Of {expected.open_batches} batches that are not posted yet the contract had settled "
            f"{expected.settled_batches}; they count as it had them."
        )
    return note
