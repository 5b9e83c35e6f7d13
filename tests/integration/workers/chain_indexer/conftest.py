"""An escrow whose events are indexed."""

from collections.abc import AsyncIterator

import pytest

from market.escrow.deploy import Terms
from market.escrow.event_reader import EscrowEventReader
from market.resources import Resources
from stack.dev_chain_client import development_account
from tests.conftest import Chain
from tests.support.escrow import Actions


@pytest.fixture
def actions(chain: Chain, chain_resources: Resources) -> Actions:
    """On an escrow whose withdrawals wait for one second."""
    deployment = chain.actor.deploy(
        development_account(0).address, Terms(withdrawal_delay=1, dormancy=14 * 24 * 3600)
    )
    payments = chain_resources.settings.payments
    payments.escrow_contract, payments.first_block = deployment.escrow, deployment.block
    payments.finalized_tag = False
    return Actions(Chain(chain.url, chain.actor, deployment, chain.keyfile))


@pytest.fixture
async def reader(actions: Actions, chain_resources: Resources) -> AsyncIterator[EscrowEventReader]:
    async with EscrowEventReader.from_settings(chain_resources.settings.payments) as opened:
        yield opened
