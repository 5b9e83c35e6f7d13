"""Random operations from 64 connections leave the books right."""

import pytest

from stack.servers import Postgres
from tests.support.market.random_operations import random_operations


@pytest.mark.timeout(450)
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_random_operations_leave_no_violation(postgres: Postgres, count: int) -> None:
    """Of the benchmark's million."""
    await random_operations(postgres, count)
