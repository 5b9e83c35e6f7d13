"""Settlement: the ledger and the chain agree, whoever is in the way."""

from sqlalchemy import select

from mesh.chain import Escrow
from mesh.db import NodeContribution
from tests.conftest import Chain
from tests.integration.money import (
    SIGNER,
    assert_ledger_equals_chain,
    rich_user,
    served,
)
from workers.services import Services
from workers.settlement import settle_due


async def test_settlement_pays_what_the_ledger_owes(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    for tokens in (7, 1, 64):
        await served(chain_services, user, tokens)
    batch = await settle_due(chain_services, escrow, SIGNER)
    assert batch is not None
    assert await escrow.batch_settled(batch)
    await assert_ledger_equals_chain(chain_services, escrow, user.address)
    assert await settle_due(chain_services, escrow, SIGNER) is None
    async with chain_services.sessions() as db:
        paid_at = await db.scalars(select(NodeContribution.paid_at))
        assert all(instant is not None for instant in paid_at)
