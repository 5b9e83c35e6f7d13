"""Settlement: ledger and chain agree, whatever happens to nonces."""

import datetime as dt
from typing import Any

from eth_utils.address import to_checksum_address
from sqlalchemy import select

from market import ledger
from market.escrow.event_reader import EscrowEventReader
from market.escrow.reader import EscrowReader
from market.jobs.tables import NodeContribution
from market.ledger.integrity_check import check_integrity
from market.money import from_units, to_units
from market.resources import Resources
from market.settlement.tables import ChainNonce
from stack.dev_chain_client import development_account
from tests.conftest import Chain
from tests.support.proxy import Call, deafness
from tests.support.settled_money import (
    OPERATOR,
    PRICE,
    PROVIDERS,
    SIGNER,
    act,
    ago,
    assert_ledger_equals_chain,
    batches,
    change,
    rich_user,
    served,
    session_of,
    settle_through,
    transactions,
)
from workers.chain_indexer.indexer import index_events
from workers.settlement import settle_due


async def test_settlement_pays_what_the_ledger_owes(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    for tokens in (7, 1, 64):
        await served(chain_resources, user, tokens)
    batch = await settle_due(chain_resources, escrow, SIGNER)
    assert batch is not None
    [settled] = await batches(chain_resources)
    assert (settled.id, settled.status) == (batch, "confirmed")
    assert settled.usage_root == await escrow.usage_root_of(batch)
    [signed] = await transactions(chain_resources)
    assert settled.transaction_hash == signed.hash
    receipt = await escrow.chain.transaction_receipt(signed.hash)
    assert receipt is not None
    assert settled.block_number == receipt.block_number
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    async with chain_resources.sessions() as db:
        paid_at = await db.scalars(select(NodeContribution.paid_at))
        assert all(instant is not None for instant in paid_at)


async def test_a_new_recipient_gets_the_fees_from_then_on(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """And the check of the ledger still knows whose the earlier ones are."""
    former, new = await escrow.fee_recipient(), development_account(5).address.lower()
    user = development_account(4)
    chain.actor.give(chain.deployment, user.address, 10**18)
    chain.actor.deposit(chain.deployment, user, 10**18)
    payments = chain_resources.settings.payments
    payments.first_block, payments.finalized_tag = chain.deployment.block, False
    async with EscrowEventReader.from_settings(payments) as events:
        await index_events(chain_resources, events)
        for recipient in (former, new):
            act(chain, development_account(2), "setFeeRecipient", to_checksum_address(recipient))
            await served(chain_resources, user, 5)
            assert await settle_due(chain_resources, escrow, SIGNER) is not None
            assert await escrow.earned_of(recipient) == 5 * to_units(PRICE) // 20
        await index_events(chain_resources, events)
    report = await check_integrity(chain_resources.sessions, escrow)
    assert report.findings == []


async def test_nothing_is_settled_before_its_release_delay(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    chain_resources.settings.payments.release_delay = 3600
    user = await rich_user(chain_resources, chain)
    job = await served(chain_resources, user, 5)
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    await change(chain_resources, job, completed_at=ago(3601))
    assert await settle_due(chain_resources, escrow, SIGNER) is not None


async def test_nothing_withheld_is_settled(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    job = await served(chain_resources, user, 5)
    forever = dt.datetime.max.replace(tzinfo=dt.UTC)
    await change(chain_resources, job, withheld_until=forever, withheld_reason="audit")
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    await change(chain_resources, job, withheld_until=ago(1))
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    settled = await session_of(chain_resources, job)
    assert settled.withheld_until is None
    assert settled.withheld_reason is None


async def test_a_batch_has_at_most_so_many_users_and_providers(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    chain_resources.settings.payments.max_lines_per_batch = 4
    first, second = [await rich_user(chain_resources, chain) for _ in range(2)]
    for user in (first, first, second):
        await served(chain_resources, user, 5)
    await settle_due(chain_resources, escrow, SIGNER)
    assert [len(batch.debits) for batch in await batches(chain_resources)] == [1, 1]
    await assert_ledger_equals_chain(chain_resources, escrow, first.address, second.address)


async def test_money_in_custody_equals_what_the_ledger_gives_out(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """Between capture and settlement the escrow still holds what providers are owed."""
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 20)
    async with chain_resources.sessions() as db:
        left = await ledger.balance(db, ledger.available(user.address.lower()))
        owed = [await ledger.balance(db, ledger.owed(provider)) for provider in PROVIDERS]
        fee = await ledger.balance(db, ledger.owed(ledger.PLATFORM))
    assert left + sum(owed) + fee == from_units(await escrow.deposit_of(user.address))


async def test_a_nonce_taken_by_another_transaction_is_signed_anew(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 9)
    await settle_through(chain_resources, chain, deafness)
    chain.actor.send_gas_money(OPERATOR, user.address)  # takes the nonce
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    lost, mined = await transactions(chain_resources)
    assert mined.nonce == lost.nonce + 1
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_nonces_that_were_signed_and_never_sent_leave_no_gap(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """Our nonce is ahead of the chain's, as after a reorganization that took a foreign transaction
    back: what was signed for the nonces between is sent first."""
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 9)
    await settle_through(chain_resources, chain, deafness)
    ahead = {"result": hex(await escrow.chain.nonce(OPERATOR.address) + 1)}

    def nonce_ahead(call: Call) -> Any:
        return ahead if call["method"] == "eth_getTransactionCount" else deafness(call)

    await settle_through(chain_resources, chain, nonce_ahead)
    first, second = await transactions(chain_resources)
    assert second.nonce == first.nonce + 1
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await served(chain_resources, user, 9)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    nonces = [transaction.nonce for transaction in await transactions(chain_resources)]
    assert nonces == [first.nonce + offset for offset in range(3)]
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_the_nonce_row_follows_the_chain(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    for _ in range(2):
        await served(chain_resources, user, 9)
        await settle_due(chain_resources, escrow, SIGNER)
    async with chain_resources.sessions() as db:
        [row] = await db.scalars(select(ChainNonce))
    assert row.account == OPERATOR.address.lower()
    assert row.next_nonce == await escrow.chain.nonce(OPERATOR.address)
