"""The settler is killed before and after everything that it writes, asks and signs, while one
answer in ten is lost. Each provider is paid once, and ledger and chain agree to the last unit."""

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes
from sqlalchemy import func, select
from web3.types import RPCEndpoint

from market.chain.client import ChainClient
from market.chain.errors import ChainUnreachable
from market.chain.failover_rpc import FailoverProvider
from market.chain.keystore_signer import KeystoreSigner
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job, NodeContribution
from market.money import ZERO, to_units
from market.resources import Resources
from market.settlement.errors import SettlementPaused
from market.settlement.tables import Settlement
from tests.conftest import Chain
from tests.support.chain.escrow import Killed
from tests.support.chain.rpc_proxy import Call, Proxy, lossy
from tests.support.chain.settled_money import (
    POOR,
    PROVIDERS,
    SIGNER,
    assert_ledger_equals_chain,
    poor_user,
    rich_user,
    served,
)
from workers.settlement import settle_due
from workers.settlement.alerts import pauses
from workers.settlement.phases import SettlementPhase, current_phase

ALWAYS = frozenset(
    {
        SettlementPhase.CLOSE,
        SettlementPhase.SIMULATE,
        SettlementPhase.SIGN,
        SettlementPhase.SEND,
        SettlementPhase.RECONCILE,
        SettlementPhase.FINALITY,
        SettlementPhase.POST,
    }
)

RUNS = 200
"""Far more than it ever takes."""

TRIES = 100
"""Settlements until one is killed at a boundary: a lost answer may lead around it."""

DEEP = 20
"""Blocks; what was final is less deep."""


@dataclass(frozen=True)
class Scenario:
    """A way that a settlement takes, and the phases in it that no other scenario kills."""

    phases: frozenset[SettlementPhase]
    poor_user: bool = False
    swallowed: bool = False
    """Endpoints take the first transaction of each batch, and forget it."""
    low_gas_balance: bool = False
    undone: bool = False
    """Something was posted, and a reorg has undone it."""


SCENARIOS = {
    "plain": Scenario(ALWAYS),
    "a user excluded": Scenario(frozenset({SettlementPhase.EXCLUDE}), poor_user=True),
    "a stuck transaction": Scenario(frozenset({SettlementPhase.REPLACE}), swallowed=True),
    "a pause": Scenario(frozenset({SettlementPhase.PAUSE}), low_gas_balance=True),
    "a deep reorg": Scenario(frozenset({SettlementPhase.REORG}), undone=True),
}


@dataclass
class ScenarioRun:
    """Where a scenario is played."""

    resources: Resources
    proxy: Proxy
    scenario: Scenario
    user: Any
    chain: Chain

    async def prepare(self) -> None:
        """Something to settle."""
        await served(self.resources, self.user, 3)
        if self.scenario.poor_user:
            await served(self.resources, POOR, 2)
        if self.scenario.low_gas_balance:
            self.resources.settings.payments.min_gas_money = Decimal(10**12)
        if self.scenario.undone:
            place = self.ask("evm_snapshot")
            await self.finish()
            self.ask("evm_revert", place)
            for _ in range(DEEP):
                self.ask("evm_mine")

    def ask(self, method: str, *params: str) -> Any:
        """The chain's answer, past the proxy."""
        provider = self.chain.actor.web3.provider
        return provider.make_request(RPCEndpoint(method), list(params))["result"]

    async def attempt(self) -> None:
        """One run, as cron starts it. What a lost answer ends, the next run takes up."""
        escrow = self.open()
        try:
            await settle_due(self.resources, escrow, SIGNER)
        except ChainUnreachable:
            pass
        except SettlementPaused:
            await self.end_pause()
        finally:
            await escrow.close()

    def open(self) -> EscrowReader:
        """The contract, seen through the proxy."""
        contract = self.resources.settings.payments.escrow_contract
        assert contract is not None
        return EscrowReader(ChainClient(FailoverProvider([self.proxy.url])), contract)

    async def end_pause(self) -> None:
        """What an operator does."""
        self.resources.settings.payments.min_gas_money = ZERO
        await pauses.resume(self.resources.sessions)

    async def nothing_due(self) -> bool:
        """Whether all that may be paid is paid."""
        async with self.resources.sessions() as db:
            unpaid = await db.scalar(
                select(func.count())
                .select_from(Job)
                .outerjoin(Settlement)
                .where(
                    Job.withheld_until.is_(None),
                    func.coalesce(Settlement.status, "") != "confirmed",
                )
            )
        return not unpaid

    async def finish(self, watch: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Run until nothing is due, each run within ``watch``."""
        for _ in range(RUNS):
            if await pauses.current_pause(self.resources.sessions):
                await self.end_pause()
            with watch():
                await self.attempt()
            if await self.nothing_due():
                return
        raise AssertionError("Settlement never comes to its end.")


@pytest.fixture
async def scenario_run(
    chain_resources: Resources,
    chain: Chain,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Any:
    scenario = SCENARIOS[request.param]
    monkeypatch.setattr("workers.settlement.task.POLL_SECONDS", 0.01)
    payments = chain_resources.settings.payments
    payments.min_gas_money, payments.stuck_after = ZERO, 0
    user = await rich_user(chain_resources, chain)
    if scenario.poor_user:
        await poor_user(chain_resources)
    proxy = Proxy(chain.url)
    with proxy.serving():
        yield ScenarioRun(chain_resources, proxy, scenario, user, chain)


async def kill_at_boundaries(run: ScenarioRun, escrow: EscrowReader, *, every: int) -> None:
    """Kill a settlement at each boundary of the scenario's phases, or at one of ``every`` so many;
    then everybody has been paid once."""
    swallow = swallowing() if run.scenario.swallowed else lambda _: None
    run.proxy.rule = swallow
    await run.prepare()
    await run.finish()  # the runs that follow have a posted batch to look at
    boundaries = [name for name in await passed(run) if phase_of(name) in run.scenario.phases]
    assert {phase_of(name) for name in boundaries} == run.scenario.phases
    loses = lossy(seed=len(boundaries))
    for boundary in boundaries[::every]:
        run.proxy.rule = lambda call: swallow(call) or loses(call)
        await kill_at(run, boundary)
        await run.finish()
    # What was killed has left its connections open: they show here, and in no later test.
    gc.collect()
    assert run.proxy.lost > 0
    await assert_paid_once(run, escrow)


def phase_of(boundary: str) -> SettlementPhase:
    return SettlementPhase(boundary.split(" ", maxsplit=1)[0])


async def passed(run: ScenarioRun) -> list[str]:
    """The boundaries of a settlement's runs in which nothing is lost, in their order."""
    names: list[str] = []
    await run.prepare()
    await run.finish(lambda: watched(run.resources, names.append))
    return list(dict.fromkeys(names))


async def kill_at(run: ScenarioRun, boundary: str) -> None:
    """Kill a run there; a run that lost an answer before it is followed by others."""

    def kill(name: str) -> None:
        if name == boundary:
            raise Killed

    for _ in range(TRIES):
        await run.prepare()
        for _ in range(RUNS):
            with watched(run.resources, kill):
                try:
                    await run.attempt()
                except Killed:
                    return
            if await run.nothing_due():
                break
    raise AssertionError(f"No run comes to {boundary}.")


@contextmanager
def watched(resources: Resources, visit: Callable[[str], None]) -> Iterator[None]:
    """Call ``visit`` before and after each commit, each question to the chain and each signature,
    with its name: phase, what, how often in this run, and which side."""
    counts: Counter[str] = Counter()

    def pass_by(what: str, side: str) -> None:
        phase = current_phase.get()
        assert phase is not None, f"{what} happens in no phase"
        kind = f"{phase} {what} {side}"
        counts[kind] += 1
        visit(f"{phase} {what} {counts[kind]} {side}")

    def doubled(method: Any, name: Callable[..., str]) -> Callable[..., Awaitable[Any]]:
        async def call(self: Any, *args: Any) -> Any:
            what = name(*args)
            if what == "eth_chainId":  # web3 asks as often as it happens to want to compare
                return await method(self, *args)
            pass_by(what, "before")
            answer = await method(self, *args)
            pass_by(what, "after")
            return answer

        return call

    dialect = resources.long_sessions.kw["bind"].sync_engine.dialect
    commit = dialect.do_commit

    def do_commit(connection: Any) -> None:
        pass_by("commit", "before")
        commit(connection)
        pass_by("commit", "after")

    with pytest.MonkeyPatch.context() as patch:
        for asks in (FailoverProvider.make_request, FailoverProvider.broadcast):
            patch.setattr(
                FailoverProvider, asks.__name__, doubled(asks, lambda method, _: str(method))
            )
        patch.setattr(KeystoreSigner, "sign", doubled(KeystoreSigner.sign, lambda _: "signature"))
        patch.setattr(dialect, "do_commit", do_commit)
        yield


def swallowing() -> Callable[[Call], Any]:
    """Take the first bytes of each nonce, say so, and forget them."""
    seen: set[int] = set()

    def rule(call: Call) -> Any:
        if call["method"] != "eth_sendRawTransaction":
            return None
        nonce = nonce_of(call["params"][0])
        if nonce in seen:
            return None
        seen.add(nonce)
        return {"result": "0x" + "00" * 32}

    return rule


def nonce_of(raw: str) -> int:
    return int(TypedTransaction.from_bytes(HexBytes(raw)).as_dict()["nonce"])


async def assert_paid_once(run: ScenarioRun, escrow: EscrowReader) -> None:
    """What providers earned on the chain is what they were due in batches that are confirmed."""
    await assert_ledger_equals_chain(
        run.resources, escrow, run.user.address, owing=run.scenario.poor_user
    )
    async with run.resources.sessions() as db:
        for provider in PROVIDERS:
            due = await db.scalar(
                select(func.sum(NodeContribution.payment_far))
                .join(Job)
                .join(Settlement)
                .where(
                    NodeContribution.wallet_address == provider, Settlement.status == "confirmed"
                )
            )
            assert await escrow.earned_of(provider) == to_units(due or ZERO) > 0
        unmarked = await db.scalar(
            select(func.count())
            .select_from(NodeContribution)
            .join(Job)
            .where(NodeContribution.paid_at.is_(None), Job.settlement_id.is_not(None))
        )
        assert unmarked == 0
