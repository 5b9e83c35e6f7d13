"""Proves the books: every rule of the ledger, and that it says what the contract says."""

import time
from dataclasses import dataclass

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from market import metrics
from market.db import Sessions
from market.ledger import chain_reconciliation
from market.ledger.chain_reconciliation import EscrowState
from market.ledger.invariants import INVARIANTS, Finding

log = structlog.get_logger()

MAX_NAMED = 20
"""Findings of one check that are named; the others are counted."""


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """What a check of the ledger found. ``counts``: violations by check, zeros included;
    ``findings`` names at most 20 of each."""

    counts: dict[str, int]
    findings: list[Finding]
    notes: list[str]

    @property
    def violations(self) -> int:
        return sum(self.counts.values())


async def check_integrity(
    sessions: Sessions, contract: EscrowState | None = None
) -> IntegrityReport:
    """Check every rule on one snapshot of the database, and that against the contract, if given.

    Raises:
        ChainError: the contract cannot be read.
    """
    counts: dict[str, int] = {}
    findings: list[Finding] = []
    notes: list[str] = []
    books = None
    async with sessions() as db:
        await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        await db.execute(text("SET TRANSACTION READ ONLY"))
        for name, rule in INVARIANTS.items():
            found, counts[name] = await _violations(db, name, rule)
            findings += found
        if contract is not None:
            books = await chain_reconciliation.expected_state(db, contract)
    if contract is not None and books is None:
        notes.append("Not compared with the chain: none of its events was read so far.")
    elif contract is not None and books is not None:
        notes.append(_compared_at(books))
        differences = await chain_reconciliation.differences(books, contract)
        for name in chain_reconciliation.COMPARISONS:
            of_check = [found for found in differences if found.check == name]
            counts[name] = len(of_check)
            findings += of_check[:MAX_NAMED]
    return IntegrityReport(counts=counts, findings=findings, notes=notes)


def publish(report: IntegrityReport) -> None:
    """Set this process's metrics to what was found, and log every finding as an error.

    A check that was not made, since the chain could not be read, has no figure.
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


async def _violations(db: AsyncSession, name: str, rule: str) -> tuple[list[Finding], int]:
    rows = (
        await db.execute(
            text(
                "SELECT subject, expected::text, found::text, count(*) OVER () AS total "
                f"FROM ({rule}) AS violations ORDER BY subject LIMIT {MAX_NAMED}"
            )
        )
    ).all()
    total = rows[0].total if rows else 0
    return [Finding(name, row.subject, row.expected, row.found) for row in rows], total


def _compared_at(books: chain_reconciliation.ExpectedState) -> str:
    said = f"Compared with the chain at block {books.block}, the last whose events were read."
    if books.open_batches:
        said += (
            f" Of {books.open_batches} batches that are not posted yet the contract had settled "
            f"{books.settled_batches}; they count as it had them."
        )
    return said
