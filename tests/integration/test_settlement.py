"""Settlement: ledger and chain agree, and whoever is in the way is left out."""

import asyncio
import datetime as dt
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hexbytes import HexBytes
from sqlalchemy import select, update
from web3 import Web3
from web3.types import RPCEndpoint

from mesh import ledger, metrics
from mesh.chain import Escrow, LocalSigner, Network, Rpc
from mesh.chain.kms import KmsSigner
from mesh.db import (
    ChainNonce,
    InferenceSession,
    NodeContribution,
    Settlement,
    SettlementPause,
    SettlementTransaction,
)
from mesh.errors import ChainUnreachable, SettlementPaused, SettlementRefused
from mesh.money import from_units
from stack.contracts import development_account
from tests.conftest import OPERATOR_PASSWORD, Chain
from tests.factories import fund
from tests.integration.money import (
    OPERATOR,
    PROVIDERS,
    SIGNER,
    assert_ledger_equals_chain,
    rich_user,
    served,
)
from tests.kms import REGION, new_key, running_kms
from tests.proxy import Call, Loss, Proxy
from workers.services import Services
from workers.settlement import pauses, settle_due
from workers.settlement.plan import describe, make_plan

POOR = "0x" + "ee" * 20
"""Has money in the ledger and none on the chain."""


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """This chain has blocks at once."""
    monkeypatch.setattr("workers.settlement.run.LOOK", 0.01)


async def batches(services: Services) -> list[Settlement]:
    async with services.sessions() as db:
        return list(await db.scalars(select(Settlement).order_by(Settlement.created_at)))


async def transactions(services: Services) -> list[SettlementTransaction]:
    async with services.sessions() as db:
        return list(
            await db.scalars(select(SettlementTransaction).order_by(SettlementTransaction.id))
        )


async def session_of(services: Services, job: InferenceSession) -> InferenceSession:
    async with services.sessions() as db:
        return await db.get_one(InferenceSession, job.id)


async def poor_user(services: Services) -> str:
    async with services.sessions.begin() as db:
        await fund(db, wallet=POOR)
    return POOR


# ------------------------------------------------------------------- the usual way


async def test_settlement_pays_what_the_ledger_owes(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    for tokens in (7, 1, 64):
        await served(chain_services, user, tokens)
    batch = await settle_due(chain_services, escrow, SIGNER)
    assert batch is not None
    [settled] = await batches(chain_services)
    assert (settled.id, settled.status) == (batch, "confirmed")
    assert settled.usage_root == await escrow.settled_root(batch)
    [signed] = await transactions(chain_services)
    assert settled.transaction_hash == signed.hash
    receipt = await escrow.network.receipt(signed.hash)
    assert receipt is not None
    assert settled.block_number == receipt.block_number
    await assert_ledger_equals_chain(chain_services, escrow, user.address)
    assert await settle_due(chain_services, escrow, SIGNER) is None
    async with chain_services.sessions() as db:
        paid_at = await db.scalars(select(NodeContribution.paid_at))
        assert all(instant is not None for instant in paid_at)


async def test_nothing_is_settled_before_its_release_delay(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    chain_services.settings.payments.release_delay = 3600
    user = await rich_user(chain_services, chain)
    job = await served(chain_services, user, 5)
    assert await settle_due(chain_services, escrow, SIGNER) is None
    await change(chain_services, job, completed_at=ago(3601))
    assert await settle_due(chain_services, escrow, SIGNER) is not None


async def test_nothing_withheld_is_settled(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    job = await served(chain_services, user, 5)
    forever = dt.datetime.max.replace(tzinfo=dt.UTC)
    await change(chain_services, job, withheld_until=forever, withheld_reason="audit")
    assert await settle_due(chain_services, escrow, SIGNER) is None
    await change(chain_services, job, withheld_until=ago(1))
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    settled = await session_of(chain_services, job)
    assert settled.withheld_until is None
    assert settled.withheld_reason is None


async def test_a_batch_has_at_most_so_many_users_and_providers(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    chain_services.settings.payments.max_lines_per_batch = 4
    first, second = [await rich_user(chain_services, chain) for _ in range(2)]
    for user in (first, first, second):
        await served(chain_services, user, 5)
    await settle_due(chain_services, escrow, SIGNER)
    assert [len(batch.debits) for batch in await batches(chain_services)] == [1, 1]
    await assert_ledger_equals_chain(chain_services, escrow, first.address, second.address)


async def test_two_settlers_at_once_are_one(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 9)
    runs = await asyncio.gather(*(settle_due(chain_services, escrow, SIGNER) for _ in range(4)))
    assert len([batch for batch in runs if batch is not None]) == 1
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_money_in_custody_equals_what_the_ledger_gives_out(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    """Between capture and settlement the escrow still holds what providers are owed."""
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 20)
    async with chain_services.sessions() as db:
        left = await ledger.balance(db, ledger.available(user.address.lower()))
        owed = [await ledger.balance(db, ledger.owed(provider)) for provider in PROVIDERS]
        fee = await ledger.balance(db, ledger.owed(ledger.PLATFORM))
    assert left + sum(owed) + fee == from_units(await escrow.deposit_of(user.address))


async def test_kms_settles(chain_services: Services, escrow: Escrow, chain: Chain) -> None:
    """A real transaction, signed by a key that this process never sees."""
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 9)
    with running_kms() as kms:
        signer = await KmsSigner.open(new_key(kms), region=REGION)
        chain.actor.give_from(chain.actor.treasury, signer.address)
        settler = contract(chain).functions.SETTLER_ROLE().call()
        act(chain, development_account(2), "grantRole", settler, signer.address)
        assert await settle_due(chain_services, escrow, signer) is not None
    [signed] = await transactions(chain_services)
    assert signed.account == signer.address.lower()
    mined = chain.actor.web3.eth.get_transaction(HexBytes(signed.hash))
    assert mined["from"] == signer.address
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_a_new_signer_takes_over_in_the_middle(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    """What the old one signed and nobody mined is not in the way."""
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 9)
    proxy = Proxy(chain.url, deafness)
    with proxy.serving():
        deaf = Escrow(Network(Rpc([proxy.url])), chain.deployment.escrow)
        with pytest.raises(ChainUnreachable):
            await settle_due(chain_services, deaf, SIGNER)
        await deaf.close()
    other = development_account(4)
    settler = contract(chain).functions.SETTLER_ROLE().call()
    act(chain, development_account(2), "grantRole", settler, other.address)
    assert await settle_due(chain_services, escrow, LocalSigner(other)) is not None
    old, new = await transactions(chain_services)
    assert (old.account, new.account) == (OPERATOR.address.lower(), other.address.lower())
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


# ------------------------------------------------------------------- nonces


async def test_a_nonce_taken_by_another_transaction_is_signed_anew(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 9)
    proxy = Proxy(chain.url, deafness)
    with proxy.serving():
        deaf = Escrow(Network(Rpc([proxy.url])), chain.deployment.escrow)
        with pytest.raises(ChainUnreachable):
            await settle_due(chain_services, deaf, SIGNER)
        await deaf.close()
    chain.actor.give_from(OPERATOR, user.address)  # takes the nonce
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    lost, mined = await transactions(chain_services)
    assert mined.nonce == lost.nonce + 1
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_nonces_that_were_signed_and_never_sent_leave_no_gap(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    """Our nonce is ahead of the chain's, as after a reorganization that took a foreign transaction
    back: what was signed for the nonces between is sent first."""
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 9)
    proxy = Proxy(chain.url, deafness)
    with proxy.serving():
        deaf = Escrow(Network(Rpc([proxy.url])), chain.deployment.escrow)
        with pytest.raises(ChainUnreachable):
            await settle_due(chain_services, deaf, SIGNER)
        ahead = {"result": hex(await escrow.network.nonce(OPERATOR.address) + 1)}
        proxy.rule = lambda call: (
            ahead if call["method"] == "eth_getTransactionCount" else deafness(call)
        )
        with pytest.raises(ChainUnreachable):
            await settle_due(chain_services, deaf, SIGNER)
        await deaf.close()
    first, second = await transactions(chain_services)
    assert second.nonce == first.nonce + 1
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    await served(chain_services, user, 9)
    assert await settle_due(chain_services, escrow, SIGNER) is not None
    nonces = [transaction.nonce for transaction in await transactions(chain_services)]
    assert nonces == [first.nonce + offset for offset in range(3)]
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_the_nonce_row_follows_the_chain(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    for _ in range(2):
        await served(chain_services, user, 9)
        await settle_due(chain_services, escrow, SIGNER)
    async with chain_services.sessions() as db:
        [row] = await db.scalars(select(ChainNonce))
    assert row.account == OPERATOR.address.lower()
    assert row.next_nonce == await escrow.network.nonce(OPERATOR.address)


# ------------------------------------------------------------------- leaving out


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


# ------------------------------------------------------------------- pauses


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


# ------------------------------------------------------------------- dry run


async def test_a_dry_run_says_what_would_happen_and_does_nothing(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, chain)
    for _ in range(2):
        await served(chain_services, user, 5)
    await served(chain_services, await poor_user(chain_services), 7)
    held = await served(chain_services, user, 3)
    await change(chain_services, held, withheld_until=ago(-60), withheld_reason="audit")
    height = chain.actor.web3.eth.block_number
    plan = await make_plan(chain_services, escrow, SIGNER)
    said = "\n".join(describe(plan))
    assert "generations 2" in said
    assert f"user {user.address.lower()} pays 0.001 FAR" in said
    assert "left out: 1 generations, 0.0007 FAR: InsufficientDeposit: " + POOR in said
    assert "left out: 1 generations, 0.0003 FAR: withheld (audit)" in said
    assert plan.draft is not None
    assert await batches(chain_services) == []
    assert chain.actor.web3.eth.block_number == height
    # What it foretold is what happens.
    batch = await settle_due(chain_services, escrow, SIGNER)
    assert batch == plan.draft.content.id
    [signed] = await transactions(chain_services)
    assert signed.gas == plan.gas


async def test_the_command_line_plans_and_resumes(
    chain_services: Services, chain: Chain, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    user = await rich_user(chain_services, chain)
    await served(chain_services, user, 5)
    async with chain_services.sessions.begin() as db:
        db.add(SettlementPause(reason="reverted", detail="by a test"))
    environment = os.environ | {
        "FAR_CONFIG": os.devnull,
        "FAR_DATABASE_URL": database_url,
        "FAR_REDIS_URL": redis_url,
        "FAR_GENERATION__PROMPT_KEY": "A" * 43 + "=",
        "FAR_PAYMENTS__ESCROW_CONTRACT": chain.deployment.escrow,
        "FAR_PAYMENTS__RPC_URLS": chain.url,
        "FAR_PAYMENTS__RPC_MAX_AGE": "0",
        "FAR_PAYMENTS__RELEASE_DELAY": "0",
        "FAR_PAYMENTS__OPERATOR_KEYFILE": str(chain.keyfile),
        "FAR_PAYMENTS__OPERATOR_PASSWORD": OPERATOR_PASSWORD,
    }

    def far_mesh(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stack.cli", "settle", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    planned = await asyncio.to_thread(far_mesh, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "Settlement is PAUSED (reverted): by a test" in planned.stdout
    assert "generations 1" in planned.stdout
    resumed = await asyncio.to_thread(far_mesh, "--resume")
    assert "Settlement goes on. It was paused (reverted): by a test" in resumed.stdout
    assert await pauses.in_force(chain_services.sessions) is None
    neither = await asyncio.to_thread(far_mesh)
    assert neither.returncode == 2


# ------------------------------------------------------------------- helpers


def is_send(call: Call) -> bool:
    return bool(call["method"] == "eth_sendRawTransaction")


def deafness(call: Call) -> Loss | None:
    """An endpoint that hears of no transaction."""
    return Loss.REQUEST if is_send(call) else None


def muteness(call: Call) -> Loss | None:
    """An endpoint that tells nobody what it did."""
    return Loss.ANSWER if is_send(call) else None


def ago(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)


async def change(services: Services, job: InferenceSession, **values: object) -> None:
    async with services.sessions.begin() as db:
        await db.execute(
            update(InferenceSession).where(InferenceSession.id == job.id).values(**values)
        )


async def pause_reason(services: Services) -> str:
    pause = await pauses.in_force(services.sessions)
    assert pause is not None
    return pause.reason


def alerts(reason: str) -> float:
    return metrics.settlement_alerts.labels(reason)._value.get()


def contract(chain: Chain) -> Any:
    return chain.actor._contract("InferenceEscrow", chain.deployment.escrow)


def act(chain: Chain, account: Any, function: str, *arguments: Any) -> None:
    chain.actor._call(account, contract(chain).functions[function](*arguments))


def set_ceiling(chain: Chain, units: int) -> None:
    act(chain, development_account(2), "setDailyCeiling", units)


def lower_cap(chain: Chain, user: Any, maximum: int) -> None:
    """Ask for a lower cap, let the contract's delay pass, and lower it."""
    act(chain, user, "requestCapLowering", maximum)
    web3 = chain.actor.web3
    later = web3.eth.get_block("latest")["timestamp"] + 2 * 24 * 3600
    web3.provider.make_request(RPCEndpoint("testing_timeTravel"), [later])
    act(chain, user, "lowerCap")
