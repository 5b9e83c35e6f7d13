"""Reorganisations up to 64 blocks deep; `make chaos` has two hundred of them."""

from tests.branching import anvil, running_anvil
from tests.reorgs import survive
from workers.services import Services


async def test_the_ledger_survives_reorganisations(services: Services, chain_url: str) -> None:
    """On anvil; on the development chain, which is far slower, where Node is missing."""
    program = anvil()
    if program is None:
        tally = await survive(services, chain_url, reorganisations=4, deepest=16, seed=2)
    else:
        with running_anvil(program) as url:
            tally = await survive(services, url, reorganisations=12, deepest=64, seed=1)
    assert tally.deeper > 0
    assert tally.reversed > 0
