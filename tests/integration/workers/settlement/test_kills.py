"""A settler that is killed at some of all places; `make chaos` takes them all."""

from collections import Counter

import pytest

from market.escrow.reader import EscrowReader
from tests.support.chain.kills import SCENARIOS, ScenarioRun, kill_at_boundaries, scenario_run
from workers.settlement.steps import Step

__all__ = ["scenario_run"]


def test_every_step_is_killed_in_some_scenario() -> None:
    covered = Counter(step for scenario in SCENARIOS.values() for step in scenario.steps)
    assert covered == Counter(list(Step))


# What was killed closes no connection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("every", [30, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario_run", SCENARIOS, indirect=True)
async def test_killed_here_and_there_each_provider_is_paid_once(
    scenario_run: ScenarioRun, escrow: EscrowReader, every: int
) -> None:
    await kill_at_boundaries(scenario_run, escrow, every=every)
