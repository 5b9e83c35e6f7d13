"""A tenth of the ledger's million random operations; a hundredth runs with the slow tests."""

import pytest

from stack.servers import Postgres
from tests.support.market.random_operations import random_operations


@pytest.mark.timeout(900)
async def test_a_tenth_of_a_million_operations_leave_no_violation(postgres: Postgres) -> None:
    await random_operations(postgres, 100_000)
