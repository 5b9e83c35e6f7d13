"""Settlement excludes users who fall short, and pauses where an operator has to look."""

import datetime as dt
from decimal import Decimal

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select, update
from web3 import Web3

from market import ledger
from market.escrow.deploy import DAY
from market.escrow.errors import SettlementRefused
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job, NodeContribution
from market.money import from_units
from market.resources import Resources
from market.settlement.errors import SettlementPaused
from market.settlement.tables import Settlement, SettlementTransaction
from stack.dev_chain_client import development_account
from tests.conftest import Chain
from tests.support.chain.rpc_proxy import Call, is_send, muteness
from tests.support.chain.settled_money import (
    POOR,
    PROVIDERS,
    SIGNER,
    act,
    ago,
    alerts,
    assert_ledger_equals_chain,
    batches,
    change,
    lower_cap,
    pass_time,
    pause_reason,
    poor_user,
    rich_user,
    seen_through,
    served,
    session_of,
    settle_through,
    statuses,
    transactions,
)
from workers.settlement import settle_due
from workers.settlement.alerts import pauses


async def test_a_user_without_a_deposit_is_excluded_and_the_others_are_paid(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    bad = [await served(chain_resources, await poor_user(chain_resources), 5) for _ in range(2)]
    await served(chain_resources, user, 6)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    replaced, paid = await batches(chain_resources)
    assert (replaced.status, paid.status) == ("replaced", "confirmed")
    assert list(paid.debits) == [user.address.lower()]
    for job in bad:
        left = await session_of(chain_resources, job)
        assert left.settlement_id is None
        assert left.withheld_reason == "InsufficientDeposit"
        assert left.withheld_until is not None
        assert left.withheld_until > dt.datetime.now(dt.UTC) + dt.timedelta(minutes=59)
    await assert_ledger_equals_chain(chain_resources, escrow, user.address, owing=True)
    assert await settle_due(chain_resources, escrow, SIGNER) is None


async def test_an_excluded_generation_is_settled_later(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """The batch has the same content again then: it is the same batch."""
    user = await rich_user(chain_resources, chain)
    job = await served(chain_resources, user, 5)
    lower_cap(chain, user, 0)
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    [replaced] = await batches(chain_resources)
    assert replaced.status == "replaced"
    assert (await session_of(chain_resources, job)).withheld_reason == "CapExceeded"
    chain.actor.raise_cap(chain.deployment, user, 10**18)
    await change(chain_resources, job, withheld_until=ago(1))
    assert await settle_due(chain_resources, escrow, SIGNER) == replaced.id
    assert await statuses(chain_resources) == ["confirmed"]
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_the_daily_ceiling_makes_a_batch_smaller(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    jobs = [await served(chain_resources, user, 10) for _ in range(3)]
    cost = Web3.to_wei(Decimal("0.001"), "ether")
    set_ceiling(chain, 2 * cost + 5)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    assert await statuses(chain_resources) == ["replaced", "confirmed"]
    waiting = await session_of(chain_resources, jobs[2])
    assert waiting.withheld_reason == "DailyCeilingExceeded"
    await change(chain_resources, waiting, withheld_until=ago(1))
    set_ceiling(chain, 10 * cost)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_a_generation_above_the_daily_ceiling_delays_no_other(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    large = await served(chain_resources, user, 90)
    set_ceiling(chain, Web3.to_wei(Decimal("0.005"), "ether"))
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    assert (await session_of(chain_resources, large)).settlement_id is None
    await served(chain_resources, user, 10)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, owing=True)


async def test_users_without_money_are_excluded_all_at_once(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """Each would cost a batch otherwise."""
    good, without_cap = [await rich_user(chain_resources, chain) for _ in range(2)]
    for user in (good, without_cap, await poor_user(chain_resources)):
        await served(chain_resources, user, 5)
    lower_cap(chain, without_cap, 0)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    assert await statuses(chain_resources) == ["replaced", "confirmed"]
    async with chain_resources.sessions() as db:
        rows = await db.execute(select(Job.user_wallet, Job.withheld_reason))
        reasons = dict(rows.all())
    assert reasons == {
        good.address.lower(): None,
        without_cap.address.lower(): "CapExceeded",
        POOR: "InsufficientDeposit",
    }


@pytest.mark.parametrize("method", ["eth_getTransactionCount", "eth_getTransactionReceipt"])
async def test_an_endpoint_that_answers_with_an_error_is_one_that_does_not_answer(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain, method: str
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    broken = {"error": {"code": -32603, "message": "internal error"}}
    await settle_through(
        chain_resources, chain, lambda call: broken if call["method"] == method else None
    )
    assert await pauses.current_pause(chain_resources.sessions) is None
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_an_endpoint_without_the_contract_undoes_nothing(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """It is on another chain, perhaps."""
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await settle_due(chain_resources, escrow, SIGNER)
    nothing = {"result": "0x"}
    await settle_through(
        chain_resources, chain, lambda call: nothing if call["method"] == "eth_call" else None
    )
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_the_contract_does_not_go_dormant_while_nobody_uses_it(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """Else the first user after two quiet weeks could spend, and be gone with his deposit."""
    pass_time(chain, 8 * DAY)
    batch = await settle_due(chain_resources, escrow, SIGNER)
    assert batch is not None
    assert await escrow.last_settled_at() == await escrow.chain.latest_timestamp()
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    pass_time(chain, 8 * DAY)
    assert await settle_due(chain_resources, escrow, SIGNER) not in (None, batch)
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_a_low_gas_balance_pauses_until_an_operator_resumes(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    payments = chain_resources.settings.payments
    payments.min_gas_money = Decimal(10**9)
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    before = alerts("low_gas_money")
    with pytest.raises(SettlementPaused):
        await settle_due(chain_resources, escrow, SIGNER)
    assert alerts("low_gas_money") == before + 1
    assert paused() == 1
    payments.min_gas_money = Decimal("0.05")
    assert await settle_due(chain_resources, escrow, SIGNER) is None
    assert await transactions(chain_resources) == []
    ended = await pauses.resume(chain_resources.sessions)
    assert ended is not None
    assert ended.reason == "low_gas_money"
    assert paused() == 0
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    assert await pauses.resume(chain_resources.sessions) is None
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_a_generation_whose_shares_do_not_sum_to_its_cost_pauses(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    job = await served(chain_resources, user, 5)
    async with chain_resources.sessions.begin() as db:
        await db.execute(
            update(NodeContribution)
            .where(NodeContribution.session_id == job.id, NodeContribution.node_id == "node-0")
            .values(payment_far=NodeContribution.payment_far + from_units(1))
        )
    with pytest.raises(SettlementPaused):
        await settle_due(chain_resources, escrow, SIGNER)
    assert await pause_reason(chain_resources) == "mismatch"
    assert await batches(chain_resources) == []


async def test_paying_more_than_the_ledger_owes_pauses(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    job = await served(chain_resources, user, 5)
    async with chain_resources.sessions.begin() as db:
        await ledger.settle(db, batch="by hand", amounts={PROVIDERS[0]: from_units(1)})
    with pytest.raises(SettlementPaused):
        await settle_due(chain_resources, escrow, SIGNER)
    assert await pause_reason(chain_resources) == "mismatch"
    assert (await session_of(chain_resources, job)).settlement_id is None


async def test_two_refusals_in_a_row_pause(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    pauser = development_account(3)
    act(chain, pauser, "pause")
    with pytest.raises(SettlementRefused, match="EnforcedPause"):
        await settle_due(chain_resources, escrow, SIGNER)
    with pytest.raises(SettlementPaused):
        await settle_due(chain_resources, escrow, SIGNER)
    assert await pause_reason(chain_resources) == "failures"
    act(chain, pauser, "unpause")
    await pauses.resume(chain_resources.sessions)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


async def test_a_reverted_transaction_pauses_and_is_replaced_after_that(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """Between simulation and block a user's cap fell: the transaction is mined, and reverts. Once
    an operator has looked, that user is excluded and the others are paid."""
    good, bad = [await rich_user(chain_resources, chain) for _ in range(2)]
    for user in (good, bad):
        await served(chain_resources, user, 5)
    fallen = False

    def lower_before_sending(call: Call) -> None:
        nonlocal fallen
        if is_send(call) and not fallen:
            fallen = True
            lower_cap(chain, bad, 0)

    async with seen_through(chain, lower_before_sending) as late:
        with pytest.raises(SettlementPaused):
            await settle_due(chain_resources, late, SIGNER)
    assert await pause_reason(chain_resources) == "reverted"
    [reverted] = await transactions(chain_resources)
    assert reverted.reverted_at is not None
    await pauses.resume(chain_resources.sessions)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    await assert_ledger_equals_chain(chain_resources, escrow, good.address, owing=True)
    assert await statuses(chain_resources) == ["replaced", "confirmed"]


async def test_another_root_under_our_id_pauses(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await settle_through(chain_resources, chain, muteness)
    async with chain_resources.sessions.begin() as db:
        await db.execute(update(Settlement).values(usage_root="0x" + "11" * 32))
    with pytest.raises(SettlementPaused):
        await settle_due(chain_resources, escrow, SIGNER)
    assert await pause_reason(chain_resources) == "mismatch"


async def test_a_batch_that_only_the_contract_knows_is_posted(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    """As after a backup was brought back: the row says closed, and the bytes are gone."""
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await settle_through(chain_resources, chain, muteness)
    async with chain_resources.sessions.begin() as db:
        await db.execute(SettlementTransaction.__table__.delete())
        await db.execute(update(Settlement).values(status="closed"))
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    [batch] = await batches(chain_resources)
    assert batch.transaction_hash is None
    assert batch.block_number is not None
    await assert_ledger_equals_chain(chain_resources, escrow, user.address)


def paused() -> float | None:
    return REGISTRY.get_sample_value("far_settlement_paused")


def set_ceiling(chain: Chain, units: int) -> None:
    act(chain, development_account(2), "setDailyCeiling", units)
