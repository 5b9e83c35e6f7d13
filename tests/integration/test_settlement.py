"""Money between the ledger and the chain: deposits in, settlements out, killed anywhere."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from sqlalchemy import event, select, update

from mesh import ledger
from mesh.chain import Escrow
from mesh.db import InferenceSession, NodeContribution, RouteHop
from mesh.errors import ChainError
from mesh.money import from_units, to_units
from stack.contracts import development_account
from tests.conftest import Chain
from tests.factories import session
from workers import ending
from workers.deposits import credit_deposits
from workers.lease import Lease
from workers.services import Services
from workers.settle import settle_due

PROVIDERS = [f"0x{digit * 40}" for digit in "bcd"]
OPERATOR = development_account(0)


class Killed(BaseException):
    """What `kill -9` looks like from inside: nothing may catch it."""


@pytest.fixture
async def escrow(chain_services: Services) -> Any:
    opened = Escrow.of(chain_services.settings.payments)
    yield opened
    await opened.close()


async def rich_user(services: Services, escrow: Escrow, chain: Chain, far: int = 1) -> LocalAccount:
    """A user whose deposit has been credited."""
    user: LocalAccount = Account.create()
    chain.actor.give(chain.deployment, user.address, far * 10**18)
    chain.actor.deposit(chain.deployment, user, far * 10**18)
    await credit_deposits(services, escrow)
    return user


async def served(services: Services, user: LocalAccount, tokens: int) -> InferenceSession:
    """A generation by three providers, ended and captured."""
    job = session(user=user.address.lower())
    async with services.sessions.begin() as db:
        db.add(job)
        await db.flush()
        await ledger.hold(db, job=job.request_id, wallet=job.user_wallet, amount=job.hold_far)
        for stage, provider in enumerate(PROVIDERS):
            db.add(
                RouteHop(
                    session_id=job.id,
                    epoch=1,
                    stage=stage,
                    node_id=f"node-{stage}",
                    wallet_address=provider,
                    start_layer=2 * stage,
                    end_layer=2 * stage + 2,
                    first_token=0,
                )
            )
    model = services.catalog.get(job.model_id)
    await ending.complete(
        services,
        Lease(services.sessions, job, seconds=60),
        model,
        tokens=tokens,
        reason="length",
        first_token_at=None,
    )
    return job


async def assert_ledger_equals_chain(services: Services, escrow: Escrow, user: str) -> None:
    """To the last unit: what providers and platform were paid, and what the user has left."""
    async with services.sessions() as db:
        for provider in PROVIDERS:
            paid = await ledger.balance(db, ledger.paid(provider))
            assert to_units(paid) == await escrow.credit_of(provider)
            assert await ledger.balance(db, ledger.owed(provider)) == 0
        fees = await ledger.balance(db, ledger.paid(ledger.PLATFORM))
        assert to_units(fees) == await escrow.credit_of(await escrow.fee_recipient())
        left = await ledger.balance(db, ledger.available(user.lower()))
        assert to_units(left) == await escrow.deposit_of(user)


async def test_a_deposit_is_credited_once(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, escrow, chain, far=3)
    assert await credit_deposits(chain_services, escrow) == 0
    async with chain_services.sessions() as db:
        assert await ledger.balance(db, ledger.available(user.address.lower())) == 3


async def test_a_deposit_counts_only_when_it_is_deep_enough(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    chain_services.settings.payments.confirmations = 2
    await rich_user(chain_services, escrow, chain)
    first = await rich_user(chain_services, escrow, chain)  # mines more blocks on top
    async with chain_services.sessions() as db:
        assert await ledger.balance(db, ledger.available(first.address.lower())) == 0
        assert await ledger.balance(db, ledger.clearing()) == -1


async def test_the_deposit_watcher_killed_anywhere_credits_once(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    users: list[LocalAccount] = []

    async def prepare() -> None:
        users.append(Account.create())
        chain.actor.give(chain.deployment, users[-1].address, 10**18)
        chain.actor.deposit(chain.deployment, users[-1], 10**18)

    async def run() -> None:
        await credit_deposits(chain_services, escrow)

    boundaries = await killed_everywhere(chain_services, prepare, run)
    assert boundaries >= 5
    async with chain_services.sessions() as db:
        for user in users:
            assert await ledger.balance(db, ledger.available(user.address.lower())) == 1


async def test_settlement_pays_what_the_ledger_owes(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, escrow, chain)
    for tokens in (7, 1, 64):
        await served(chain_services, user, tokens)
    batch = await settle_due(chain_services, escrow, OPERATOR)
    assert batch is not None
    assert await escrow.batch_settled(batch)
    await assert_ledger_equals_chain(chain_services, escrow, user.address)
    assert await settle_due(chain_services, escrow, OPERATOR) is None
    async with chain_services.sessions() as db:
        paid_at = await db.scalars(select(NodeContribution.paid_at))
        assert all(instant is not None for instant in paid_at)


async def test_nothing_is_settled_before_its_release_delay(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    chain_services.settings.payments.release_delay = 3600
    user = await rich_user(chain_services, escrow, chain)
    job = await served(chain_services, user, 5)
    assert await settle_due(chain_services, escrow, OPERATOR) is None
    async with chain_services.sessions.begin() as db:
        long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=3601)
        await db.execute(
            update(InferenceSession)
            .where(InferenceSession.id == job.id)
            .values(completed_at=long_ago)
        )
    assert await settle_due(chain_services, escrow, OPERATOR) is not None


async def test_settlement_killed_anywhere_pays_once(
    chain_services: Services, escrow: Escrow, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after every commit and every call to the chain."""
    monkeypatch.setattr("workers.settle.LOOK", 0.01)
    user = await rich_user(chain_services, escrow, chain)
    tokens = 0

    async def prepare() -> None:
        nonlocal tokens
        for count in (11, 5):
            await served(chain_services, user, count)
            tokens += count

    async def run() -> None:
        await settle_due(chain_services, escrow, OPERATOR)

    boundaries = await killed_everywhere(chain_services, prepare, run)
    assert boundaries > 15
    await assert_ledger_equals_chain(chain_services, escrow, user.address)
    earned = [await escrow.earned_of(provider) for provider in PROVIDERS]
    cost = to_units(Decimal("0.0001")) * tokens
    assert sum(earned) == cost - cost * 5 // 100


async def test_a_nonce_taken_by_another_transaction_is_signed_anew(
    chain_services: Services, escrow: Escrow, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await rich_user(chain_services, escrow, chain)
    await served(chain_services, user, 9)

    async def lost(self: Escrow, raw: bytes) -> None:
        raise ChainError("The network ate it.")

    with monkeypatch.context() as patch:
        patch.setattr(Escrow, "send", lost)
        with pytest.raises(ChainError):
            await settle_due(chain_services, escrow, OPERATOR)
    chain.actor.give_from(OPERATOR, user.address)  # takes the nonce
    assert await settle_due(chain_services, escrow, OPERATOR) is not None
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_two_settlers_at_once_are_one(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    user = await rich_user(chain_services, escrow, chain)
    await served(chain_services, user, 9)
    runs = await asyncio.gather(*(settle_due(chain_services, escrow, OPERATOR) for _ in range(4)))
    assert len([batch for batch in runs if batch is not None]) == 1
    await assert_ledger_equals_chain(chain_services, escrow, user.address)


async def test_money_in_custody_equals_what_the_ledger_gives_out(
    chain_services: Services, escrow: Escrow, chain: Chain
) -> None:
    """Between capture and settlement the escrow still holds what providers are owed."""
    user = await rich_user(chain_services, escrow, chain)
    await served(chain_services, user, 20)
    async with chain_services.sessions() as db:
        left = await ledger.balance(db, ledger.available(user.address.lower()))
        owed = [await ledger.balance(db, ledger.owed(provider)) for provider in PROVIDERS]
        fee = await ledger.balance(db, ledger.owed(ledger.PLATFORM))
    assert left + sum(owed) + fee == from_units(await escrow.deposit_of(user.address))


async def killed_everywhere(
    services: Services,
    prepare: Callable[[], Awaitable[None]],
    run: Callable[[], Awaitable[None]],
) -> int:
    """Give the work something to do, kill it at a boundary, and run it again; for each boundary.

    Returns how many boundaries there are.
    """
    for boundary in range(100):
        await prepare()
        with killed_at(services, boundary) as reached:
            try:
                await run()
            except Killed:
                killed = True
            else:
                killed = False
        await run()
        if not killed:
            assert reached() <= boundary
            return boundary
    raise AssertionError("The work never comes to its end.")


@contextmanager
def killed_at(services: Services, boundary: int) -> Iterator[Callable[[], int]]:
    """Raise `Killed` at the n-th boundary: before and after each commit and each call."""
    passed = 0

    def pass_boundary(*_: object) -> None:
        nonlocal passed
        passed += 1
        if passed > boundary:
            raise Killed

    def doubled(method: Any) -> Any:
        async def call(self: Escrow, *args: Any, **kwargs: Any) -> Any:
            pass_boundary()
            answer = await method(self, *args, **kwargs)
            pass_boundary()
            return answer

        return call

    calls = (
        "head",
        "deposits",
        "batch_settled",
        "next_nonce",
        "sign_settlement",
        "send",
        "mined_in",
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(Escrow, name, doubled(getattr(Escrow, name)))
        sync = services.engine.sync_engine
        event.listen(sync, "commit", pass_boundary)
        try:
            yield lambda: passed
        finally:
            event.remove(sync, "commit", pass_boundary)
