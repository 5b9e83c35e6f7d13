"""Users with deposits, generations that were served, and whether ledger and chain agree."""

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from prometheus_client import REGISTRY
from sqlalchemy import select, update
from web3.types import RPCEndpoint

from market import ledger
from market.chain.client import ChainClient
from market.chain.errors import ChainUnreachable
from market.chain.failover_rpc import FailoverProvider
from market.chain.keystore_signer import KeystoreSigner
from market.escrow.deploy import DAY
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job, RouteHop
from market.money import from_units, to_units
from market.resources import Resources
from market.settlement.tables import Settlement, SettlementTransaction
from stack.dev_chain_client import development_account
from tests.conftest import Chain
from tests.support.chain.rpc_proxy import Proxy, Rule
from tests.support.factories import fund, session, token_entries
from workers.settlement import settle_due
from workers.settlement.alerts import pauses
from workers.supervisor import completion
from workers.supervisor.lease import Lease

PROVIDERS = [f"0x{digit * 40}" for digit in "bcd"]
OPERATOR = development_account(0)
SIGNER = KeystoreSigner(OPERATOR)
POOR = "0x" + "ee" * 20
"""Has money in the ledger and none on the chain."""

PRICE = Decimal("0.0001")
"""FAR a token, as `tests.factories.session` has it."""


async def rich_user(resources: Resources, chain: Chain, units: int = 10**18) -> LocalAccount:
    """A user whose deposit, and as high a cap, is on the chain and in the ledger."""
    user: LocalAccount = Account.create()
    chain.actor.give(chain.deployment, user.address, units)
    transaction = chain.actor.deposit(chain.deployment, user, units)
    async with resources.sessions.begin() as db:
        await ledger.deposit(
            db, reference=transaction, wallet=user.address.lower(), amount=from_units(units)
        )
        await ledger.raise_cap(db, wallet=user.address.lower(), maximum=from_units(units))
    return user


async def served(
    resources: Resources,
    user: LocalAccount | str,
    tokens: int,
    providers: Sequence[str] = PROVIDERS,
) -> Job:
    """A generation by these providers, ended and captured."""
    wallet = user if isinstance(user, str) else user.address
    job = session(user=wallet.lower(), price=PRICE)
    async with resources.sessions.begin() as db:
        db.add(job)
        await db.flush()
        await ledger.hold(db, job=job.request_id, wallet=job.user_wallet, amount=job.hold_far)
        for stage, provider in enumerate(providers):
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
    await end(resources, job, tokens)
    return job


async def end(resources: Resources, job: Job, tokens: int) -> None:
    """End a generation with so many tokens, and capture."""
    await completion.end(
        resources,
        Lease(resources.sessions, job, seconds=60),
        edge_units=resources.catalog.get(job.model_id).edge_units,
        reason="length",
        code=None,
        progress=completion.Progress(token_entries(tokens)),
    )


async def assert_ledger_equals_chain(
    resources: Resources, escrow: EscrowReader, *users: str, owing: bool = False
) -> None:
    """To the last unit: what providers and platform were paid, and what the users have left.

    ``owing``: something is owed still.
    """
    async with resources.sessions() as db:
        for provider in PROVIDERS:
            paid = await ledger.balance(db, ledger.paid(provider))
            assert to_units(paid) == await escrow.credit_of(provider)
            assert owing == bool(await ledger.balance(db, ledger.owed(provider)))
        fees = await ledger.balance(db, ledger.paid(ledger.PLATFORM))
        assert to_units(fees) == await escrow.credit_of(await escrow.fee_recipient())
        assert owing == bool(await ledger.balance(db, ledger.owed(ledger.PLATFORM)))
        for user in users:
            left = await ledger.balance(db, ledger.available(user.lower()))
            assert to_units(left) == await escrow.deposit_of(user)


async def batches(resources: Resources) -> list[Settlement]:
    """All batches that were ever closed, the oldest first."""
    async with resources.sessions() as db:
        return list(await db.scalars(select(Settlement).order_by(Settlement.created_at)))


async def only_batch(resources: Resources) -> Settlement:
    """The one batch that was ever closed."""
    [only] = await batches(resources)
    return only


async def statuses(resources: Resources) -> list[str]:
    """Of all batches that were ever closed, the oldest first."""
    return [batch.status for batch in await batches(resources)]


async def transactions(resources: Resources) -> list[SettlementTransaction]:
    """All transactions that were ever signed, the oldest first."""
    async with resources.sessions() as db:
        return list(
            await db.scalars(select(SettlementTransaction).order_by(SettlementTransaction.id))
        )


async def session_of(resources: Resources, job: Job) -> Job:
    """The generation as it is now."""
    async with resources.sessions() as db:
        return await db.get_one(Job, job.id)


async def poor_user(resources: Resources) -> str:
    """Somebody whom the ledger lets spend what the contract does not have."""
    async with resources.sessions.begin() as db:
        await fund(db, wallet=POOR)
    return POOR


def ago(seconds: float) -> dt.datetime:
    """An instant; below zero: one that comes."""
    return dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)


async def change(resources: Resources, job: Job, **values: object) -> None:
    """Set columns of a generation."""
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).where(Job.id == job.id).values(**values))


def contract(chain: Chain) -> Any:
    """The escrow, as web3 has it."""
    return chain.actor.contract("InferenceEscrow", chain.deployment.escrow)


def act(chain: Chain, account: Any, function: str, *arguments: Any) -> None:
    """Call a function of the escrow, and see it mined."""
    chain.actor.call(account, contract(chain).functions[function](*arguments))


@asynccontextmanager
async def seen_through(chain: Chain, rule: Rule) -> AsyncIterator[EscrowReader]:
    """The escrow behind an endpoint that does what a rule says."""
    proxy = Proxy(chain.url, rule)
    with proxy.serving():
        escrow = EscrowReader(ChainClient(FailoverProvider([proxy.url])), chain.deployment.escrow)
        try:
            yield escrow
        finally:
            await escrow.close()


async def settle_through(resources: Resources, chain: Chain, rule: Rule) -> None:
    """A run that an endpoint which does what the rule says brings to its end."""
    async with seen_through(chain, rule) as escrow:
        with pytest.raises(ChainUnreachable):
            await settle_due(resources, escrow, SIGNER)


def make_settler(chain: Chain, account: str) -> None:
    """Let another account settle as well."""
    role = contract(chain).functions.SETTLER_ROLE().call()
    act(chain, development_account(2), "grantRole", role, account)


async def pause_reason(resources: Resources) -> str:
    """Why settlement is paused."""
    pause = await pauses.current_pause(resources.sessions)
    assert pause is not None
    return pause.reason


def alerts(reason: str) -> float:
    """How often an operator was alerted for this reason."""
    name = "far_settlement_alerts_total"
    return REGISTRY.get_sample_value(name, {"reason": reason}) or 0.0


def lower_cap(chain: Chain, user: Any, maximum: int) -> None:
    """Ask for a lower cap, let the contract's delay pass, and lower it."""
    act(chain, user, "requestCapLowering", maximum)
    pass_time(chain, 2 * DAY)
    act(chain, user, "lowerCap")


def pass_time(chain: Chain, seconds: int) -> None:
    """Mine a block that is so much later."""
    web3 = chain.actor.web3
    later = web3.eth.get_block("latest")["timestamp"] + seconds
    web3.provider.make_request(RPCEndpoint("evm_mine"), [later])
