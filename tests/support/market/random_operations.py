"""The random operations of the ledger benchmark, as a test."""

from benchmarks.ledger import measure
from market.ledger.chain_reconciliation import COMPARISONS
from market.ledger.invariants import INVARIANTS
from stack.servers import Postgres


async def random_operations(postgres: Postgres, count: int) -> None:
    """Do so many, and check ledger and answers."""
    try:
        measured = await measure(
            postgres, count, users=50, providers=10, seed=7, report_progress=lambda line: None
        )
    finally:
        postgres.execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")
    assert measured.expected.wrong == []
    assert measured.report.findings == []
    assert measured.report.counts == dict.fromkeys((*INVARIANTS, *COMPARISONS), 0)
    done = measured.expected.outcomes
    assert min(done[how] for how in ("again", "twice at once", "killed", "overdraft")) > 0
