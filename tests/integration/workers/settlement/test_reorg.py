"""Batches that a reorganization undoes, before they are final or after that, on anvil."""

import asyncio

from sqlalchemy import select

from market import ledger
from market.escrow.reader import EscrowReader
from market.jobs.tables import NodeContribution
from market.money import from_units
from market.resources import Resources
from stack.dev_chain_client import development_account
from tests.conftest import Chain
from tests.support.manual_chain import (
    DEPTH,
    chain,
    mine,
    mining,
    needs_anvil,
    reorganize,
    short_runs,
    snapshot,
    something_due,
)
from tests.support.proxy import deafness
from tests.support.settled_money import (
    OPERATOR,
    PRICE,
    PROVIDERS,
    SIGNER,
    act,
    alerts,
    assert_ledger_equals_chain,
    batches,
    only_batch,
    rich_user,
    served,
    settle_through,
    statuses,
    transactions,
)
from workers.settlement import settle_due

__all__ = ["chain", "short_runs"]

pytestmark = needs_anvil


async def post(resources: Resources, escrow: EscrowReader, chain: Chain) -> str:
    """Settle what is due, until it is final; returns the batch."""
    await settle_due(resources, escrow, SIGNER)
    mine(chain, 1 + DEPTH)
    batch = await settle_due(resources, escrow, SIGNER)
    assert batch is not None
    return batch


async def test_a_reorganization_unmarks_and_the_same_bytes_are_mined_again(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await something_due(chain_resources, chain)
    await settle_due(chain_resources, escrow, SIGNER)
    fork = snapshot(chain)
    mine(chain)
    await settle_due(chain_resources, escrow, SIGNER)
    first = await only_batch(chain_resources)
    assert first.status == "mined"
    reorganize(chain, fork, 2)
    await settle_due(chain_resources, escrow, SIGNER)
    assert (await only_batch(chain_resources)).status == "signed"
    mine(chain, 1 + DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) == first.id
    again = await only_batch(chain_resources)
    assert again.transaction_hash == first.transaction_hash
    assert first.block_number is not None
    assert again.block_number == first.block_number + 2
    await assert_ledger_equals_chain(chain_resources, escrow, user)


async def test_a_reorganization_in_which_somebody_takes_the_nonce(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await something_due(chain_resources, chain)
    await settle_due(chain_resources, escrow, SIGNER)
    fork = snapshot(chain)
    mine(chain)
    await settle_due(chain_resources, escrow, SIGNER)
    reorganize(chain, fork)
    with mining(chain.actor):
        await asyncio.to_thread(chain.actor.send_gas_money, OPERATOR, user)
    await settle_due(chain_resources, escrow, SIGNER)
    mine(chain, 1 + DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    first, second = await transactions(chain_resources)
    assert second.nonce == first.nonce + 1
    assert (await only_batch(chain_resources)).transaction_hash == second.hash
    await assert_ledger_equals_chain(chain_resources, escrow, user)


async def test_what_was_paid_is_owed_again_and_paid_again(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await something_due(chain_resources, chain)
    fork = snapshot(chain)
    batch = await post(chain_resources, escrow, chain)
    [first] = await batches(chain_resources)
    reorganize(chain, fork, 3 + 2 * DEPTH)
    before = alerts("taken_back")
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    assert alerts("taken_back") == before + 1
    [undone] = await batches(chain_resources)
    assert (undone.status, undone.block_number) == ("signed", None)
    async with chain_resources.sessions() as db:
        assert await ledger.balance(db, ledger.paid(PROVIDERS[0])) == 0
        assert await ledger.balance(db, ledger.owed(PROVIDERS[0])) > 0
        assert set(await db.scalars(select(NodeContribution.paid_at))) == {None}
    mine(chain, 1 + DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) == batch
    [again] = await batches(chain_resources)
    assert again.transaction_hash == first.transaction_hash
    assert again.block_number != first.block_number
    assert again.undone_at is None
    assert len(await transactions(chain_resources)) == 1
    await assert_ledger_equals_chain(chain_resources, escrow, user)


async def test_a_branch_that_is_shorter_so_far_says_nothing(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    await something_due(chain_resources, chain)
    fork = snapshot(chain)
    await post(chain_resources, escrow, chain)
    reorganize(chain, fork, DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    assert await statuses(chain_resources) == ["confirmed"]


async def test_several_are_undone_while_another_is_open(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """They come back in the order of their nonces."""
    with mining(chain.actor):
        user = await rich_user(chain_resources, chain)
    fork = snapshot(chain)
    for _ in range(2):
        await served(chain_resources, user, 5)
        await post(chain_resources, escrow, chain)
    await served(chain_resources, user, 5)
    await settle_due(chain_resources, escrow, SIGNER)
    assert await statuses(chain_resources) == ["confirmed", "confirmed", "signed"]
    reorganize(chain, fork, 4 * DEPTH)
    await settle_due(chain_resources, escrow, SIGNER)
    assert await statuses(chain_resources) == ["signed", "signed", "signed"]
    mine(chain, 1 + DEPTH)
    await settle_due(chain_resources, escrow, SIGNER)
    assert await statuses(chain_resources) == ["confirmed", "confirmed", "confirmed"]
    assert len(await transactions(chain_resources)) == 3
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_the_bytes_of_a_replaced_batch_are_never_sent_again(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """Its nonce was another's, and the ceiling too low for it. On the other branch it could be
    mined: and its generations are in another batch."""
    with mining(chain.actor):
        user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await served(chain_resources, user, 50)
    await settle_through(chain_resources, chain, deafness)
    fork = snapshot(chain)
    with mining(chain.actor):
        chain.actor.send_gas_money(OPERATOR, user.address)
        act(chain, development_account(2), "setDailyCeiling", 10**15)
    mine(chain, DEPTH)
    batch = await post(chain_resources, escrow, chain)
    assert await statuses(chain_resources) == ["replaced", "confirmed"]
    reorganize(chain, fork, 4 + 4 * DEPTH)
    await settle_due(chain_resources, escrow, SIGNER)
    mine(chain, 1 + DEPTH)
    assert await settle_due(chain_resources, escrow, SIGNER) == batch
    signed = await transactions(chain_resources)
    assert await escrow.chain.transaction_receipt(signed[0].hash) is None
    assert signed[-1].nonce == signed[0].nonce
    debited = from_units(10**18 - await escrow.deposit_of(user.address))
    assert debited == 5 * PRICE
    await assert_ledger_equals_chain(chain_resources, escrow, owing=True)
