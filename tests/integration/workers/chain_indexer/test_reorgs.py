"""Reorgs up to 64 blocks deep; `make chaos` has two hundred of them."""

import pytest

from market.resources import Resources
from tests.support.chain.branching import anvil, running_anvil
from tests.support.chain.reorgs import survive
from tests.support.chain.settled_reorgs import settle_on


@pytest.mark.slow
async def test_the_ledger_survives_reorgs(resources: Resources, chain_url: str) -> None:
    """On anvil; on the development chain, which is far slower, where Node is missing."""
    program = anvil()
    if program is None:
        tally = await survive(resources, chain_url, reorgs=4, deepest=16, seed=2)
    else:
        with running_anvil(program) as url:
            tally = await survive(resources, url, reorgs=12, deepest=64, seed=1)
    assert tally.deeper > 0
    assert tally.reversed > 0


@pytest.mark.slow
async def test_settlement_survives_reorgs(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = anvil()
    if program is None:
        pytest.skip("anvil is not there: run `npm ci` in contracts/")
    monkeypatch.setattr("workers.settlement.task.POLL_SECONDS", 0.01)
    with running_anvil(program) as url:
        settled = await settle_on(resources, url, reorgs=8, deepest=64, seed=1)
    assert settled.undone > 0
