"""Wallets that spend one token each, so that the operator pays gas for a line of each."""

from decimal import Decimal

from market import ledger
from market.escrow.reader import EscrowReader
from market.money import from_units
from market.resources import Resources
from tests.conftest import Chain
from tests.support.chain.settled_money import SIGNER, ago, batches, change, rich_user, served
from workers.settlement import settle_due
from workers.settlement.preview import describe, make_preview


async def test_dust_waits_until_it_is_old(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    payments = chain_resources.settings.payments
    payments.settle_amount, payments.settle_age = Decimal(1), 3600
    jobs = []
    for _ in range(3):
        jobs.append(await served(chain_resources, await rich_user(chain_resources, chain), 1))
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    assert await batches(chain_resources) == []
    said = describe(await make_preview(chain_resources, escrow, SIGNER))
    assert "excluded: 3 generations, 0.0003 FAR: less than 1 FAR a user, and not 3600 s old" in said
    await change(chain_resources, jobs[0], completed_at=ago(3601))
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    [batch] = await batches(chain_resources)
    assert list(batch.debits) == [jobs[0].user_wallet]


async def test_an_amount_is_settled_at_once(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """It counts what all generations of a user cost together."""
    payments = chain_resources.settings.payments
    payments.settle_amount, payments.settle_age = Decimal("0.001"), 3600
    spender, saver = [await rich_user(chain_resources, chain) for _ in range(2)]
    await served(chain_resources, saver, 9)
    for tokens in (4, 6):
        await served(chain_resources, spender, tokens)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    [batch] = await batches(chain_resources)
    assert list(batch.debits) == [spender.address.lower()]


async def test_dust_is_settled_before_its_user_can_withdraw_it(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    chain_resources.settings.payments.settle_amount = Decimal(1)
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 1)
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    async with chain_resources.sessions.begin() as db:
        await ledger.request_withdrawal(
            db, reference="0xaa:0", wallet=user.address.lower(), amount=Decimal(1)
        )
    assert await settle_due(chain_resources, escrow, SIGNER) is not None


async def test_a_request_that_leaves_the_debt_lets_dust_wait(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """It may stand for ever, and of 1 wei: holds leave that much, and so the debt."""
    chain_resources.settings.payments.settle_amount = Decimal(1)
    user = await rich_user(chain_resources, chain)
    async with chain_resources.sessions.begin() as db:
        await ledger.request_withdrawal(
            db, reference="0xaa:0", wallet=user.address.lower(), amount=from_units(1)
        )
    await served(chain_resources, user, 1)
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    assert await batches(chain_resources) == []
