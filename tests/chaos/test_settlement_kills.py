"""A settler that is killed before and after everything that it writes, asks and signs."""

import pytest

from market.escrow.reader import EscrowReader
from tests.support.chain.kills import SCENARIOS, ScenarioRun, kill_at_boundaries, scenario_run

__all__ = ["scenario_run"]


# What was killed closes no connection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario_run", SCENARIOS, indirect=True)
async def test_killed_anywhere_each_provider_is_paid_once(
    scenario_run: ScenarioRun, escrow: EscrowReader
) -> None:
    await kill_at_boundaries(scenario_run, escrow, every=1)
