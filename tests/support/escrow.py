"""A user's wallet acting on the escrow, and an indexer that is killed."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from sqlalchemy import event, select
from web3 import Web3

from market import ledger
from market.chain.failover_rpc import Endpoint
from market.escrow.artifacts import artifact
from market.escrow.event_reader import EscrowEventReader
from market.escrow.reader import EscrowReader
from market.escrow.tables import ChainEvent
from market.ledger.integrity_check import check_integrity
from market.ledger.tables import SpendingCap
from market.resources import Resources
from tests.conftest import Chain

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


def confirm_after(
    resources: Resources, reader: EscrowEventReader, blocks: int
) -> EscrowEventReader:
    """A reader of the same contract for which a block is confirmed below so many others."""
    resources.settings.payments.confirmations = blocks
    return EscrowEventReader(reader.chain, reader.address, confirmations=blocks)


async def left(resources: Resources, user: LocalAccount) -> tuple[Decimal, Decimal, Decimal]:
    """What is available, what is set aside for a withdrawal, and the cap."""
    wallet = user.address.lower()
    async with resources.sessions() as db:
        return (
            await ledger.balance(db, ledger.available(wallet)),
            await ledger.balance(db, ledger.withdrawing(wallet)),
            await db.scalar(select(SpendingCap.signed).where(SpendingCap.wallet == wallet))
            or Decimal(0),
        )


async def assert_ledger_agrees(resources: Resources, reader: EscrowEventReader) -> None:
    report = await check_integrity(resources.sessions, EscrowReader(reader.chain, reader.address))
    assert report.violations == 0, report.findings


async def stored(resources: Resources, name: str) -> list[ChainEvent]:
    async with resources.sessions() as db:
        return list(await db.scalars(select(ChainEvent).where(ChainEvent.name == name)))


async def killed_at(boundary: int, resources: Resources, run: Callable[[], Awaitable[Any]]) -> bool:
    """Whether the run came to its n-th boundary and was killed there."""
    with killing(resources, boundary):
        try:
            await run()
        except Killed:
            return True
    return False


@contextmanager
def killing(resources: Resources, boundary: int) -> Iterator[None]:
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
        sync = resources.engine.sync_engine
        event.listen(sync, "commit", pass_boundary)
        try:
            yield
        finally:
            event.remove(sync, "commit", pass_boundary)
