"""The escrow's events in the ledger: when they count, what they mean, killed anywhere."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from sqlalchemy import event, func, select, update
from structlog.testing import capture_logs
from web3 import Web3

from market import ledger
from market.chain.errors import ChainError, ChainMoved
from market.chain.failover_rpc import Endpoint
from market.escrow.artifacts import artifact
from market.escrow.batch_lines import pack_lines
from market.escrow.deploy import Terms
from market.escrow.event_reader import EscrowEventReader
from market.escrow.reader import EscrowReader
from market.escrow.tables import ChainBlock, ChainEvent
from market.ledger.integrity_check import check_integrity
from market.ledger.tables import SpendingCap
from market.money import from_units
from market.resources import Services
from market.settlement.tables import Settlement
from stack.dev_chain_client import development_account
from tests.conftest import Chain
from tests.support.factories import session
from workers.chain_indexer.indexer import follow_chain, index_events

FAR = 10**18


class Killed(BaseException):
    """What `kill -9` looks like from inside: nothing may catch it."""


class Actions:
    """What a user's wallet and the settler do with the escrow."""

    def __init__(self, chain: Chain) -> None:
        self.web3 = chain.actor.web3
        self.chain = chain
        self.escrow = self.web3.eth.contract(
            address=Web3.to_checksum_address(chain.deployment.escrow),
            abi=artifact("InferenceEscrow")["abi"],
        )

    def user(self, far: int = 1) -> LocalAccount:
        """A wallet that has deposited so much, and signed a cap of as much."""
        made: LocalAccount = Account.create()
        self.chain.actor.give(self.chain.deployment, made.address, far * FAR)
        self.chain.actor.deposit(self.chain.deployment, made, far * FAR)
        return made

    def call(self, user: LocalAccount, name: str, *arguments: Any) -> None:
        """One transaction, and so one block."""
        fields = self.escrow.functions[name](*arguments).build_transaction(
            {
                "from": user.address,
                "nonce": self.web3.eth.get_transaction_count(user.address),
                "chainId": self.web3.eth.chain_id,
                "gas": 500_000,
            }
        )
        sent = self.web3.eth.send_raw_transaction(user.sign_transaction(fields).raw_transaction)
        assert self.web3.eth.wait_for_transaction_receipt(sent)["status"] == 1

    def pass_by(self, blocks: int) -> None:
        """Blocks in which nothing happens."""
        for _ in range(blocks):
            self.ask("evm_mine")

    def ask(self, method: str, *params: Any) -> Any:
        answer = self.web3.provider.make_request(method, list(params))  # type: ignore[arg-type]
        assert "error" not in answer, answer
        return answer["result"]


@pytest.fixture
def actions(chain: Chain, chain_services: Services) -> Actions:
    """On an escrow whose withdrawals wait for one second."""
    deployment = chain.actor.deploy(
        development_account(0).address, Terms(withdrawal_delay=1, dormancy=14 * 24 * 3600)
    )
    payments = chain_services.settings.payments
    payments.escrow_contract, payments.first_block = deployment.escrow, deployment.block
    payments.finalized_tag = False
    return Actions(Chain(chain.url, chain.actor, deployment, chain.keyfile))


@pytest.fixture
async def reader(actions: Actions, chain_services: Services) -> AsyncIterator[EscrowEventReader]:
    async with EscrowEventReader.from_settings(chain_services.settings.payments) as opened:
        yield opened


def confirm_after(services: Services, reader: EscrowEventReader, blocks: int) -> EscrowEventReader:
    """A reader of the same contract for which a block is confirmed below so many others."""
    services.settings.payments.confirmations = blocks
    return EscrowEventReader(reader.chain, reader.address, confirmations=blocks)


async def left(services: Services, user: LocalAccount) -> tuple[Decimal, Decimal, Decimal]:
    """What is available, what is set aside for a withdrawal, and the cap."""
    wallet = user.address.lower()
    async with services.sessions() as db:
        return (
            await ledger.balance(db, ledger.available(wallet)),
            await ledger.balance(db, ledger.withdrawing(wallet)),
            await db.scalar(select(SpendingCap.signed).where(SpendingCap.wallet == wallet))
            or Decimal(0),
        )


async def assert_ledger_agrees(services: Services, reader: EscrowEventReader) -> None:
    report = await check_integrity(services.sessions, EscrowReader(reader.chain, reader.address))
    assert report.violations == 0, report.findings


async def test_a_deposit_and_a_cap_count_once(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=3)
    assert await index_events(chain_services, reader) == 2
    assert await index_events(chain_services, reader) == 0
    assert await left(chain_services, user) == (3, 0, 3)
    await assert_ledger_agrees(chain_services, reader)


async def test_money_counts_only_when_it_is_deep_enough(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    reader = confirm_after(chain_services, reader, 3)
    user = actions.user()
    for blocks, seen in ((0, (0, 0, 0)), (1, (0, 0, 0)), (1, (1, 0, 0)), (1, (1, 0, 1))):
        actions.pass_by(blocks)
        await index_events(chain_services, reader)
        assert await left(chain_services, user) == seen


async def test_a_range_of_which_nothing_is_final_ends_the_pass(
    chain_services: Services,
    actions: Actions,
    reader: EscrowEventReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As while the chain's finality stands still: the same range would be read for ever."""
    monkeypatch.setattr("market.escrow.event_reader.MAX_BLOCK_RANGE", 3)
    user = actions.user()
    await index_events(chain_services, reader)
    reader = confirm_after(chain_services, reader, 100)
    actions.pass_by(8)
    async with asyncio.timeout(30):
        assert await index_events(chain_services, reader) == 0
    assert await left(chain_services, user) == (1, 0, 1)


async def test_what_is_on_its_way_out_is_set_aside_and_then_gone(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=5)
    actions.call(user, "requestWithdrawal", 2 * FAR)
    await index_events(chain_services, reader)
    assert await left(chain_services, user) == (3, 2, 5)
    actions.call(user, "cancelWithdrawal")
    await index_events(chain_services, reader)
    assert await left(chain_services, user) == (5, 0, 5)
    actions.call(user, "requestWithdrawal", 4 * FAR)
    actions.pass_by(2)
    actions.call(user, "withdraw", user.address)
    await index_events(chain_services, reader)
    assert await left(chain_services, user) == (1, 0, 5)
    await assert_ledger_agrees(chain_services, reader)


async def test_a_lower_cap_binds_as_soon_as_it_is_seen(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    """A higher one does not; and a lowering that vanishes binds no more."""
    user = actions.user(far=5)
    await index_events(chain_services, reader)
    reader = confirm_after(chain_services, reader, 10)
    mark = actions.ask("evm_snapshot")
    actions.call(user, "requestCapLowering", 2 * FAR)
    await index_events(chain_services, reader)
    assert (await left(chain_services, user))[2] == 2
    actions.ask("evm_revert", mark)
    actions.pass_by(3)
    await index_events(chain_services, reader)
    assert (await left(chain_services, user))[2] == 5


async def test_a_lowering_that_is_cancelled_binds_until_that_counts(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=5)
    actions.call(user, "requestCapLowering", 2 * FAR)
    await index_events(chain_services, reader)
    reader = confirm_after(chain_services, reader, 1)
    actions.call(user, "cancelCapLowering")
    await index_events(chain_services, reader)
    assert (await left(chain_services, user))[2] == 2
    actions.pass_by(1)
    await index_events(chain_services, reader)
    assert (await left(chain_services, user))[2] == 5


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "replaced"])
async def test_a_batch_that_we_did_not_close_raises_the_alarm(
    chain_services: Services, actions: Actions, reader: EscrowEventReader, known: bool
) -> None:
    """Or one whose generations are in another by now."""
    user = actions.user()
    thief = development_account(0)
    batch, root = b"\x07" * 32, b"\x08" * 32
    debits, credits = (pack_lines({who.address.lower(): FAR}) for who in (user, thief))
    if known:
        lines = {user.address.lower(): str(FAR)}
        async with chain_services.sessions.begin() as db:
            db.add(
                Settlement(
                    id="0x" + batch.hex(),
                    status="replaced",
                    debits=lines,
                    credits=lines,
                    fee_units=Decimal(0),
                )
            )
    actions.call(thief, "settle", batch, debits, credits, 0, root)
    with capture_logs() as logs:
        await index_events(chain_services, reader)
    [alarm] = [entry for entry in logs if entry["event"] == "batch_not_ours"]
    assert alarm["batch"] == "0x" + batch.hex()
    assert alarm["log_level"] == "error"


async def test_a_deposit_that_a_deep_reorganisation_takes_back(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    """It had counted, and was spent in part. When it comes again, what was spent stays spent."""
    mark = actions.ask("evm_snapshot")
    user = actions.user(far=5)
    wallet = user.address.lower()
    await index_events(chain_services, reader)
    async with chain_services.sessions.begin() as db:
        job = session(user=wallet, price=Decimal("0.02"), max_tokens=100)
        db.add(job)
        await ledger.hold(db, job=job.request_id, wallet=wallet, amount=job.hold_far)
    actions.ask("evm_revert", mark)
    actions.pass_by(8)
    with capture_logs() as logs:
        await index_events(chain_services, reader)
    assert {"chain_reorganised", "chain_event_reverted"} <= {entry["event"] for entry in logs}
    assert await left(chain_services, user) == (0, 0, 0)
    async with chain_services.sessions() as db:
        assert await ledger.balance(db, ledger.shortfall(wallet)) == -2
        assert await ledger.balance(db, ledger.clearing()) == 0

    actions.chain.actor.give(actions.chain.deployment, user.address, 5 * FAR)
    actions.chain.actor.deposit(actions.chain.deployment, user, 5 * FAR)
    await index_events(chain_services, reader)
    assert await left(chain_services, user) == (3, 0, 5)
    async with chain_services.sessions() as db:
        assert await ledger.balance(db, ledger.shortfall(wallet)) == 0
    await assert_ledger_agrees(chain_services, reader)


async def test_a_chain_that_flips_back_counts_once(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    """The same blocks twice, with another branch between."""
    user = actions.user(far=5)
    await index_events(chain_services, reader)
    first = await reader.hashes([await reader.chain.head()])
    async with chain_services.sessions.begin() as db:  # what a look at the other branch left
        await db.execute(
            update(ChainBlock).where(ChainBlock.number.in_(first)).values(hash="0x" + "77" * 32)
        )
    for _ in range(2):
        await index_events(chain_services, reader)
        assert await left(chain_services, user) == (5, 0, 5)
    statuses = {row.status for row in await stored(chain_services, "Deposited")}
    assert statuses == {"applied"}
    await assert_ledger_agrees(chain_services, reader)


async def test_another_chain_reverses_nothing(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=5)
    await index_events(chain_services, reader)
    async with chain_services.sessions.begin() as db:
        await db.execute(update(ChainBlock).values(hash="0x" + "77" * 32))
    with pytest.raises(ChainError, match="None of our blocks"):
        await index_events(chain_services, reader)
    with capture_logs() as logs:
        await follow_chain({"services": chain_services})
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["chain_unread"]
    assert await left(chain_services, user) == (5, 0, 5)


async def test_a_node_that_is_behind_reverses_nothing(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    mark = actions.ask("evm_snapshot")
    user = actions.user(far=5)
    await index_events(chain_services, reader)
    actions.ask("evm_revert", mark)
    with pytest.raises(ChainMoved):
        await index_events(chain_services, reader)
    assert await left(chain_services, user) == (5, 0, 5)


async def test_a_chain_that_moves_while_it_is_read_is_read_again(
    chain_services: Services,
    actions: Actions,
    reader: EscrowEventReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The events of a branch that is left between two questions do not slip in."""
    await index_events(chain_services, reader)
    mark = actions.ask("evm_snapshot")
    user = actions.user(far=5)
    request = Endpoint.request

    async def leave_the_branch_after_its_logs(self: Endpoint, method: str, params: Any) -> Any:
        answer = await request(self, method, params)
        if method == "eth_getLogs":
            actions.ask("evm_revert", mark)
            actions.pass_by(8)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Endpoint, "request", leave_the_branch_after_its_logs)
        with pytest.raises(ChainMoved):
            await index_events(chain_services, reader)
    await index_events(chain_services, reader)
    assert await left(chain_services, user) == (0, 0, 0)
    assert await stored(chain_services, "Deposited") == []


async def test_killed_anywhere_everything_counts_once(
    chain_services: Services, actions: Actions, reader: EscrowEventReader
) -> None:
    """At each commit and each question to the chain, with a reorganisation on the way."""
    user = actions.user()
    await index_events(chain_services, reader)
    boundary = 0
    while True:
        mark = actions.ask("evm_snapshot")
        actions.call(user, "requestWithdrawal", FAR // 2)
        await index_events(chain_services, reader)
        actions.ask("evm_revert", mark)
        actions.pass_by(1)
        actions.call(user, "requestWithdrawal", boundary + 1)
        killed = await killed_at(
            boundary, chain_services, lambda: index_events(chain_services, reader)
        )
        await index_events(chain_services, reader)
        asked = from_units(boundary + 1)
        assert await left(chain_services, user) == (1 - asked, asked, 1)
        if not killed:
            break
        boundary += 1
    assert boundary > 8
    await assert_ledger_agrees(chain_services, reader)


async def stored(services: Services, name: str) -> list[ChainEvent]:
    async with services.sessions() as db:
        return list(await db.scalars(select(ChainEvent).where(ChainEvent.name == name)))


async def killed_at(boundary: int, services: Services, run: Callable[[], Awaitable[Any]]) -> bool:
    """Whether the run came to its n-th boundary and was killed there."""
    with killing(services, boundary):
        try:
            await run()
        except Killed:
            return True
    return False


@contextmanager
def killing(services: Services, boundary: int) -> Iterator[None]:
    """Raise `Killed` at the n-th boundary: before and after each commit and each question."""
    passed = 0

    def pass_boundary(*_: object) -> None:
        nonlocal passed
        passed += 1
        if passed > boundary:
            raise Killed

    request = Endpoint.request

    async def between_boundaries(*args: Any) -> Any:
        pass_boundary()
        answer = await request(*args)
        pass_boundary()
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Endpoint, "request", between_boundaries)
        sync = services.engine.sync_engine
        event.listen(sync, "commit", pass_boundary)
        try:
            yield
        finally:
            event.remove(sync, "commit", pass_boundary)


async def test_old_hashes_are_forgotten(
    chain_services: Services,
    actions: Actions,
    reader: EscrowEventReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.chain_indexer.event_store.REORG_WINDOW", 3)
    for _ in range(8):
        actions.pass_by(1)
        await index_events(chain_services, reader)
    async with chain_services.sessions() as db:
        assert await db.scalar(select(func.count()).select_from(ChainBlock)) == 4
