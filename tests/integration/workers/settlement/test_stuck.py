"""Transactions that are sent twice, stuck, replaced, or not final yet, on anvil."""

from decimal import Decimal
from itertools import pairwise

from sqlalchemy import select

from market.escrow.reader import EscrowReader
from market.jobs.tables import NodeContribution
from market.resources import Resources
from tests.conftest import Chain
from tests.support.manual_chain import (
    DEPTH,
    ask,
    chain,
    mine,
    needs_anvil,
    short_runs,
    something_due,
)
from tests.support.settled_money import (
    SIGNER,
    alerts,
    assert_ledger_equals_chain,
    only_batch,
    transactions,
)
from workers.settlement import settle_due

__all__ = ["chain", "short_runs"]

pytestmark = needs_anvil


async def test_what_is_sent_twice_is_one_transaction(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await something_due(chain_resources, chain)
    for _ in range(2):
        assert await settle_due(chain_resources, escrow, SIGNER) is None
    [transaction] = await transactions(chain_resources)
    assert transaction.sent_at is not None
    mine(chain, 1 + DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    assert len(await transactions(chain_resources)) == 1
    await assert_ledger_equals_chain(chain_resources, escrow, user)


async def test_a_stuck_transaction_is_replaced_at_its_nonce(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    payments = chain_resources.settings.payments
    user = await something_due(chain_resources, chain)
    await settle_due(chain_resources, escrow, SIGNER)
    payments.stuck_after = 0
    await settle_due(chain_resources, escrow, SIGNER)
    payments.stuck_after = 3600
    mine(chain, 1 + DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    signed = await transactions(chain_resources)
    assert len(signed) > 1
    assert len({transaction.nonce for transaction in signed}) == 1
    for old, new in pairwise(signed):
        assert old.priority_fee_wei is not None
        assert new.priority_fee_wei is not None
        assert 10 * new.max_fee_wei >= 11 * old.max_fee_wei
        assert 10 * new.priority_fee_wei >= 11 * old.priority_fee_wei
    sent = [transaction for transaction in signed if transaction.sent_at is not None]
    assert (await only_batch(chain_resources)).transaction_hash == sent[-1].hash
    await assert_ledger_equals_chain(chain_resources, escrow, user)


async def test_the_first_may_be_mined_although_it_was_replaced(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """A miner that never heard of the replacement: every hash is looked for."""
    user = await something_due(chain_resources, chain)
    await settle_due(chain_resources, escrow, SIGNER)
    [first] = await transactions(chain_resources)
    chain_resources.settings.payments.stuck_after = 0
    await settle_due(chain_resources, escrow, SIGNER)
    ask(chain.actor, "anvil_dropAllTransactions")
    ask(chain.actor, "eth_sendRawTransaction", "0x" + first.raw.hex())
    mine(chain, 1 + DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    assert (await only_batch(chain_resources)).transaction_hash == first.hash
    await assert_ledger_equals_chain(chain_resources, escrow, user)


async def test_fees_stop_at_the_ceiling(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    payments = chain_resources.settings.payments
    user = await something_due(chain_resources, chain)
    await settle_due(chain_resources, escrow, SIGNER)
    [first] = await transactions(chain_resources)
    payments.stuck_after = 0
    payments.max_fee_gwei = (first.max_fee_wei * Decimal("1.5")) / 10**9
    before = alerts("fee_ceiling")
    for _ in range(3):
        await settle_due(chain_resources, escrow, SIGNER)
    assert alerts("fee_ceiling") > before
    signed = await transactions(chain_resources)
    assert max(transaction.max_fee_wei for transaction in signed) <= (
        first.max_fee_wei * Decimal("1.5")
    )
    # A pool may have dropped it meanwhile.
    ask(chain.actor, "anvil_dropAllTransactions")
    await settle_due(chain_resources, escrow, SIGNER)
    mine(chain, 1 + DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, user)


async def test_nothing_is_posted_before_its_block_is_final(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await something_due(chain_resources, chain)
    await settle_due(chain_resources, escrow, SIGNER)
    mine(chain, DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    mined = await only_batch(chain_resources)
    assert mined.status == "mined"
    async with chain_resources.sessions() as db:
        assert set(await db.scalars(select(NodeContribution.paid_at))) == {None}
    mine(chain)
    assert await settle_due(chain_resources, escrow, SIGNER) == mined.id
    await assert_ledger_equals_chain(chain_resources, escrow, user)


async def test_the_chains_own_finality_counts_where_it_has_one(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """anvil calls final what is 64 blocks deep."""
    chain_resources.settings.payments.finalized_tag = True
    user = await something_due(chain_resources, chain)
    mine(chain, 70)
    await settle_due(chain_resources, escrow, SIGNER)
    mine(chain, 60)
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    mine(chain, 10)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, user)
