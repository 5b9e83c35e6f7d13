"""Reorganisations up to 64 blocks deep; `make chaos` has two hundred of them."""

import pytest

from market.resources import Resources
from tests.support.branching import anvil, running_anvil
from tests.support.reorgs import survive
from tests.support.settled_reorgs import settle_on


async def test_the_ledger_survives_reorganisations(resources: Resources, chain_url: str) -> None:
    """On anvil; on the development chain, which is far slower, where Node is missing."""
    program = anvil()
    if program is None:
        tally = await survive(resources, chain_url, reorganisations=4, deepest=16, seed=2)
    else:
        with running_anvil(program) as url:
            tally = await survive(resources, url, reorganisations=12, deepest=64, seed=1)
    assert tally.deeper > 0
    assert tally.reversed > 0


@pytest.mark.parametrize("reorganisations", [3, pytest.param(8, marks=pytest.mark.slow)])
async def test_settlement_survives_reorganisations(
    resources: Resources, monkeypatch: pytest.MonkeyPatch, reorganisations: int
) -> None:
    program = anvil()
    if program is None:
        pytest.skip("anvil is not there: run `npm ci` in contracts/")
    monkeypatch.setattr("workers.settlement.task.POLL_SECONDS", 0.01)
    with running_anvil(program) as url:
        settled = await settle_on(
            resources, url, reorganisations=reorganisations, deepest=64, seed=1
        )
    assert settled.undone > 0
