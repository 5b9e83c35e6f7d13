"""A settler that is killed at some of all places; `make chaos` takes them all."""

from collections import Counter

import pytest

from market.escrow.reader import EscrowReader
from tests.support.chain.kills import SCENARIOS, ScenarioRun, kill_at_boundaries, scenario_run
from workers.settlement.phases import SettlementPhase

__all__ = ["scenario_run"]

CASES = [("plain", 30), *(pytest.param(each, 10, marks=pytest.mark.slow) for each in SCENARIOS)]
"""Scenarios, and which part of their places is taken: one in so many."""


def test_every_phase_is_killed_in_some_scenario() -> None:
    covered = Counter(phase for scenario in SCENARIOS.values() for phase in scenario.phases)
    assert covered == Counter(list(SettlementPhase))


# What was killed closes no connection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("scenario_run", "every"), CASES, indirect=["scenario_run"])
async def test_a_killed_settler_pays_each_provider_once(
    scenario_run: ScenarioRun, escrow: EscrowReader, every: int
) -> None:
    await kill_at_boundaries(scenario_run, escrow, every=every)
