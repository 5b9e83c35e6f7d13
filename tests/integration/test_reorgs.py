"""Reorganisations up to 64 blocks deep; `make chaos` has two hundred of them."""

import pytest

from tests.branching import anvil, running_anvil
from tests.reorgs import survive
from workers.services import Services


async def test_the_ledger_survives_reorganisations_on_anvil(services: Services) -> None:
    program = anvil()
    if program is None:
        pytest.skip("anvil is not there: run `npm ci` in contracts/")
    with running_anvil(program) as url:
        tally = await survive(services, url, reorganisations=12, deepest=64, seed=1)
    assert tally.deeper > 0
    assert tally.reversed > 0


async def test_the_ledger_survives_reorganisations_on_the_development_chain(
    services: Services, chain_url: str
) -> None:
    tally = await survive(services, chain_url, reorganisations=6, deepest=24, seed=2)
    assert tally.deeper > 0
