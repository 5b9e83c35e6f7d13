"""Who settles: several at once, one after the other, one whose key was stolen; and where."""

import asyncio

import pytest
from hexbytes import HexBytes

from market.chain.errors import ChainError
from market.chain.keystore_signer import LocalSigner
from market.chain.kms_signer import KmsSigner
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job
from market.resources import Resources
from market.settlement.errors import SettlementPaused
from market.settlement.tables import SettlementTransaction
from stack.dev_chain_client import development_account
from tests.conftest import Chain
from tests.support.kms import REGION, new_key, running_kms
from tests.support.proxy import deafness
from tests.support.settled_money import (
    OPERATOR,
    SIGNER,
    act,
    assert_ledger_equals_chain,
    contract,
    lower_cap,
    make_settler,
    pause_reason,
    rich_user,
    served,
    session_of,
    settle_through,
    statuses,
    transactions,
)
from workers.settlement import collect, exclusions, settle_due, submit
from workers.settlement.run_context import OpenBatch, SettlementRun


async def test_two_settlers_at_once_are_one(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 9)
    runs = await asyncio.gather(*(settle_due(chain_resources, escrow, SIGNER) for _ in range(4)))
    assert len([batch for batch in runs if batch is not None]) == 1
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_kms_settles(chain_resources: Resources, escrow: EscrowReader, chain: Chain) -> None:
    """A real transaction, signed by a key that this process never sees."""
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 9)
    with running_kms() as kms:
        signer = await KmsSigner.open(new_key(kms), region=REGION)
        chain.actor.send_gas_money(chain.actor.treasury, signer.address)
        make_settler(chain, signer.address)
        assert await settle_due(chain_resources, escrow, signer) is not None
    [signed] = await transactions(chain_resources)
    assert signed.account == signer.address.lower()
    mined = chain.actor.web3.eth.get_transaction(HexBytes(signed.hash))
    assert mined["from"] == signer.address
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_a_new_signer_takes_over_in_the_middle(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """What the old one signed and nobody mined is not in the way."""
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 9)
    await settle_through(chain_resources, chain, deafness)
    other = development_account(4)
    make_settler(chain, other.address)
    assert await settle_due(chain_resources, escrow, LocalSigner(other)) is not None
    old, new = await transactions(chain_resources)
    assert (old.account, new.account) == (OPERATOR.address.lower(), other.address.lower())
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_what_an_account_signed_that_is_no_settler_any_more_is_not_in_the_way(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """A stolen key: its role is taken away, its bytes are still about, and a user falls short."""
    good, bad = [await rich_user(chain_resources, chain) for _ in range(2)]
    for user in (good, bad):
        await served(chain_resources, user, 5)
    await settle_through(chain_resources, chain, deafness)
    lower_cap(chain, bad, 0)
    other = development_account(4)
    make_settler(chain, other.address)
    payments = chain_resources.settings.payments
    patience, payments.confirmation_wait = payments.confirmation_wait, 1
    assert await settle_due(chain_resources, escrow, LocalSigner(other)) is None
    take_role_away(chain, OPERATOR.address)
    payments.confirmation_wait = patience
    assert await settle_due(chain_resources, escrow, LocalSigner(other)) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, good.address, owing=True)
    assert await statuses(chain_resources) == ["replaced", "confirmed"]


async def one_closed(run: SettlementRun, chain: Chain) -> tuple[Job, OpenBatch]:
    """A generation, and the batch that it is in, which nobody has signed yet."""
    job = await served(run.resources, await rich_user(run.resources, chain), 5)
    await collect.close_batch(run)
    closed = await run.open_batch()
    assert closed is not None
    return job, closed


async def test_a_batch_that_another_settler_has_posted_is_not_replaced(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """Also where nobody knows of a transaction of it."""
    run = SettlementRun(chain_resources, escrow, SIGNER)
    job, closed = await one_closed(run, chain)
    await settle_due(chain_resources, escrow, SIGNER)
    async with chain_resources.sessions.begin() as db:
        await db.execute(SettlementTransaction.__table__.delete())
    with pytest.raises(ChainError, match="another settler"):
        await exclusions.reclose(run, closed, {"CapExceeded": [job]})
    assert await statuses(chain_resources) == ["confirmed"]


async def test_a_batch_that_another_settler_has_signed_is_not_replaced(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """The one way to pay twice: the generation in two batches that can both be mined."""
    run = SettlementRun(chain_resources, escrow, SIGNER)
    job, closed = await one_closed(run, chain)
    await submit.sign(run, closed)
    with pytest.raises(ChainError, match="another settler"):
        await exclusions.reclose(run, closed, {"CapExceeded": [job]})
    assert (await session_of(chain_resources, job)).settlement_id == closed.id
    assert await statuses(chain_resources) == ["signed"]


async def test_a_batch_that_another_settler_has_replaced_is_not_signed(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    run = SettlementRun(chain_resources, escrow, SIGNER)
    job, closed = await one_closed(run, chain)
    await exclusions.reclose(run, closed, {"CapExceeded": [job]})
    with pytest.raises(ChainError, match="another settler"):
        await submit.sign(run, closed)
    assert await transactions(chain_resources) == []


async def test_a_batch_for_another_contract_is_not_sent_to_this_one(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """Settings that change while a batch is on its way: it may be mined on the old contract."""
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await settle_through(chain_resources, chain, deafness)
    other = EscrowReader(escrow.chain, chain.actor.deploy(OPERATOR.address).escrow)
    with pytest.raises(SettlementPaused):
        await settle_due(chain_resources, other, SIGNER)
    assert await pause_reason(chain_resources) == "mismatch"
    assert len(await transactions(chain_resources)) == 1


def take_role_away(chain: Chain, account: str) -> None:
    role = contract(chain).functions.SETTLER_ROLE().call()
    act(chain, development_account(2), "revokeRole", role, account)
