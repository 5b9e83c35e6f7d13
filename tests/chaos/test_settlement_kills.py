"""A settler that is killed before and after everything that it writes, asks and signs."""

import pytest

from market.escrow.reader import EscrowReader
from tests.support.kills import SCENARIOS, Field, field, kill_everywhere

__all__ = ["field"]


# What was killed closes no connection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("field", SCENARIOS, indirect=True)
async def test_killed_anywhere_each_provider_is_paid_once(
    field: Field, escrow: EscrowReader
) -> None:
    await kill_everywhere(field, escrow, every=1)
