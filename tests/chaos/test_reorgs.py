"""Two hundred reorganisations, each depth from 1 to 64 blocks three times or more."""

import pytest

from market.resources import Resources
from tests.support.branching import anvil, running_anvil
from tests.support.reorgs import survive
from tests.support.settled_reorgs import settle_on


@pytest.mark.timeout(1800)
async def test_the_ledger_survives_two_hundred_reorganisations(resources: Resources) -> None:
    program = anvil()
    if program is None:
        pytest.skip("anvil is not there: run `npm ci` in contracts/")
    with running_anvil(program) as url:
        tally = await survive(resources, url, reorganisations=200, deepest=64, seed=3)
    assert tally.reorganisations == 200
    assert tally.deeper > 50
    assert tally.reversed > 0
    print(f"\n{tally}")


@pytest.mark.timeout(3600)
async def test_settlement_survives_two_hundred_reorganisations(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = anvil()
    if program is None:
        pytest.skip("anvil is not there: run `npm ci` in contracts/")
    monkeypatch.setattr("workers.settlement.task.POLL_SECONDS", 0.01)
    with running_anvil(program) as url:
        settled = await settle_on(resources, url, reorganisations=200, deepest=64, seed=4)
    assert settled.reorganisations == 200
    assert settled.undone > 50
    print(f"\n{settled}")
