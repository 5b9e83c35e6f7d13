"""Settlement leaves out who is in the way, and pauses where an operator has to look."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import update
from web3 import Web3
from web3.types import RPCEndpoint

from mesh import ledger, metrics
from mesh.chain import Escrow, Network, Rpc
from mesh.db import (
    NodeContribution,
    Settlement,
    SettlementTransaction,
)
from mesh.errors import ChainError, ChainUnreachable, SettlementPaused, SettlementRefused
from mesh.money import from_units
from stack.contracts import development_account
from tests.conftest import Chain
from tests.integration.money import (
    PROVIDERS,
    SIGNER,
    act,
    ago,
    assert_ledger_equals_chain,
    batches,
    change,
    poor_user,
    rich_user,
    served,
    session_of,
    transactions,
)
from tests.proxy import Call, Proxy, is_send, muteness
from workers.services import Services
from workers.settlement import collect, leaving_out, pauses, settle_due, submit
from workers.settlement.context import Run


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """This chain has blocks at once."""
    monkeypatch.setattr("workers.settlement.run.LOOK", 0.01)


async def test_a_user_without_a_deposit_is_left_out_and_the_others_are_paid(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 5)
    bad = [await served(chain_services, await poor_user(chain_services), 5) for _ in range(2)]
    await served(chain_services, user, 6)
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    replaced, paid = await batches(chain_services)
    assert (replaced.status, paid.status) == ("replaced", "confirmed")
    assert list(paid.debits) == [user.address.lower()]
    for job in bad:
        left = await session_of(chain_services, job)
        assert left.settlement_id is None
        assert left.withheld_reason == "InsufficientDeposit"
        assert left.withheld_until is not None
        assert left.withheld_until > dt.datetime.now(dt.UTC) + dt.timedelta(minutes=59)
    await assert_ledger_equals_chain(chain_services, escrow, user.address, owing=True)
    assert await settle_due(chain_services, escrow, SIGNER) is None


async def test_who_was_left_out_is_paid_for_later(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    """The batch has the same content again then: it is the same batch."""
    user = await rich_user(chain_services, chain)
    job = await served(chain_services, user, 5)
    lower_cap(chain, user, 0)
    assert await settle_due(chain_services, escrow, SIGNER) is None
    [replaced] = await batches(chain_services)
    assert replaced.status == "replaced"
    assert (await session_of(chain_services, job)).withheld_reason == "CapExceeded"
    chain.actor.raise_cap(chain.deployment, user, 10**18)
    await change(chain_services, job, withheld_until=ago(1))
    assert await settle_due(chain_services, escrow, SIGNER) == replaced.id
    assert [batch.status for batch in await batches(chain_services)] == ["confirmed"]
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_the_daily_ceiling_makes_a_batch_smaller(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    jobs = [await served(chain_services, user, 10) for _ in range(3)]
    cost = Web3.to_wei(Decimal("0.001"), "ether")
    set_ceiling(chain, 2 * cost + 5)
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    statuses = [batch.status for batch in await batches(chain_services)]
    assert sorted(statuses) == ["closed", "confirmed", "replaced"]
    waiting = await session_of(chain_services, jobs[2])
    assert waiting.withheld_until is None
    set_ceiling(chain, 10 * cost)
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_a_batch_that_another_settler_has_signed_is_not_replaced(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    """The one way to pay twice: the generation in two batches that can both be mined."""
    user = await rich_user(chain_services, chain)
    job = await served(chain_services, user, 5)
    run = Run(chain_services, escrow, SIGNER)
    await collect.close(run)
    [closed] = await batches(chain_services)
    await submit.sign(run, closed)
    with pytest.raises(ChainError, match="another settler"):
        await leaving_out.replace(run, closed, [job], signed=0, withhold="CapExceeded")
    assert (await session_of(chain_services, job)).settlement_id == closed.id
    assert [batch.status for batch in await batches(chain_services)] == ["signed"]


async def test_a_batch_that_another_settler_has_replaced_is_not_signed(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    job = await served(chain_services, user, 5)
    run = Run(chain_services, escrow, SIGNER)
    await collect.close(run)
    [closed] = await batches(chain_services)
    await leaving_out.replace(run, closed, [job], signed=0, withhold="CapExceeded")
    with pytest.raises(ChainError, match="another settler"):
        await submit.sign(run, closed)
    assert await transactions(chain_services) == []


async def test_low_gas_money_pauses_until_an_operator_resumes(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    payments = chain_services.settings.payments
    payments.min_gas_money = Decimal(10**9)
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 5)
    before = alerts("low_gas_money")
    with pytest.raises(SettlementPaused):
        await settle_due(chain_services, escrow, SIGNER)
    assert alerts("low_gas_money") == before + 1
    assert metrics.settlement_paused._value.get() == 1
    payments.min_gas_money = Decimal("0.05")
    assert await settle_due(chain_services, escrow, SIGNER) is None
    assert await transactions(chain_services) == []
    ended = await pauses.resume(chain_services.sessions)
    assert ended is not None
    assert ended.reason == "low_gas_money"
    assert metrics.settlement_paused._value.get() == 0
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    assert await pauses.resume(chain_services.sessions) is None
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_a_generation_whose_parts_are_not_its_cost_pauses(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    job = await served(chain_services, user, 5)
    async with chain_services.sessions.begin() as db:
        await db.execute(
            update(NodeContribution)
            .where(NodeContribution.session_id == job.id, NodeContribution.node_id == "node-0")
            .values(payment_far=NodeContribution.payment_far + from_units(1))
        )
    with pytest.raises(SettlementPaused):
        await settle_due(chain_services, escrow, SIGNER)
    assert await pause_reason(chain_services) == "mismatch"
    assert await batches(chain_services) == []


async def test_paying_more_than_the_ledger_owes_pauses(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    job = await served(chain_services, user, 5)
    async with chain_services.sessions.begin() as db:
        await ledger.settle(db, batch="by hand", amounts={PROVIDERS[0]: from_units(1)})
    with pytest.raises(SettlementPaused):
        await settle_due(chain_services, escrow, SIGNER)
    assert await pause_reason(chain_services) == "mismatch"
    assert (await session_of(chain_services, job)).settlement_id is None


async def test_two_refusals_in_a_row_pause(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 5)
    pauser = development_account(3)
    act(chain, pauser, "pause")
    with pytest.raises(SettlementRefused, match="EnforcedPause"):
        await settle_due(chain_services, escrow, SIGNER)
    with pytest.raises(SettlementPaused):
        await settle_due(chain_services, escrow, SIGNER)
    assert await pause_reason(chain_services) == "failures"
    act(chain, pauser, "unpause")
    await pauses.resume(chain_services.sessions)
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_a_reverted_transaction_pauses_and_is_mended_after_that(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    """Between simulation and block a user's cap fell: the transaction is mined, and reverts. Once
    an operator has looked, that user is left out and the others are paid."""
    good, bad = [await rich_user(chain_services, chain) for _ in range(2)]
    for user in (good, bad):
        await served(chain_services, user, 5)
    fallen = False

    def lower_before_sending(call: Call) -> None:
        nonlocal fallen
        if is_send(call) and not fallen:
            fallen = True
            lower_cap(chain, bad, 0)

    proxy = Proxy(chain.url, lower_before_sending)
    with proxy.serving():
        late = Escrow(Network(Rpc([proxy.url])), chain.deployment.escrow)
        with pytest.raises(SettlementPaused):
            await settle_due(chain_services, late, SIGNER)
        await late.close()
    assert await pause_reason(chain_services) == "reverted"
    [reverted] = await transactions(chain_services)
    assert reverted.reverted_at is not None
    await pauses.resume(chain_services.sessions)
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_services, escrow, good.address, owing=True)
    assert [b.status for b in await batches(chain_services)] == ["replaced", "confirmed"]


async def test_another_root_under_our_id_pauses(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 5)
    proxy = Proxy(chain.url, muteness)
    with proxy.serving():
        lossy = Escrow(Network(Rpc([proxy.url])), chain.deployment.escrow)
        with pytest.raises(ChainUnreachable):
            await settle_due(chain_services, lossy, SIGNER)
        await lossy.close()
    async with chain_services.sessions.begin() as db:
        await db.execute(update(Settlement).values(usage_root="0x" + "11" * 32))
    with pytest.raises(SettlementPaused):
        await settle_due(chain_services, escrow, SIGNER)
    assert await pause_reason(chain_services) == "mismatch"


async def test_a_batch_that_only_the_contract_knows_is_posted(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    """As after a backup was brought back: the row says closed, and the bytes are gone."""
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 5)
    proxy = Proxy(chain.url, muteness)
    with proxy.serving():
        lossy = Escrow(Network(Rpc([proxy.url])), chain.deployment.escrow)
        with pytest.raises(ChainUnreachable):
            await settle_due(chain_services, lossy, SIGNER)
        await lossy.close()
    async with chain_services.sessions.begin() as db:
        await db.execute(SettlementTransaction.__table__.delete())
        await db.execute(update(Settlement).values(status="closed"))
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    [batch] = await batches(chain_services)
    assert batch.transaction_hash is None
    assert batch.block_number is not None
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def pause_reason(services: Services) -> str:
    pause = await pauses.in_force(services.sessions)
    assert pause is not None
    return pause.reason


def alerts(reason: str) -> float:
    return metrics.settlement_alerts.labels(reason)._value.get()


def set_ceiling(chain: Chain, units: int) -> None:
    act(chain, development_account(2), "setDailyCeiling", units)


def lower_cap(chain: Chain, user: Any, maximum: int) -> None:
    """Ask for a lower cap, let the contract's delay pass, and lower it."""
    act(chain, user, "requestCapLowering", maximum)
    web3 = chain.actor.web3
    later = web3.eth.get_block("latest")["timestamp"] + 2 * 24 * 3600
    web3.provider.make_request(RPCEndpoint("testing_timeTravel"), [later])
    act(chain, user, "lowerCap")
