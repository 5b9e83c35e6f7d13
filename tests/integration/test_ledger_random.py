"""Random operations from 64 connections leave the books right: a hundredth of the benchmark."""

import pytest

from benchmarks.ledger import measure
from stack.servers import Postgres

OPERATIONS = 10_000


@pytest.mark.timeout(450)
async def test_random_operations_leave_no_violation(postgres: Postgres) -> None:
    try:
        measured = await measure(
            postgres, OPERATIONS, users=50, providers=10, seed=7, say=lambda line: None
        )
    finally:
        postgres.execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")
    assert measured.account.wrong == []
    assert measured.report.findings == []
    assert len(measured.report.counts) == 13
    done = measured.account.outcomes
    assert min(done[how] for how in ("again", "twice at once", "killed", "overdraft")) > 0
