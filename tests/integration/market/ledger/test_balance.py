"""A user's balance and spending cap, as the API shows them."""

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from market import ledger
from market.db import Sessions
from market.escrow.event_reader import EscrowEventReader
from market.ledger.postings import post
from market.money import from_units
from market.resources import Resources
from tests.conftest import Chain
from tests.support.chain.escrow import FAR, Actions
from tests.support.factories import fund
from tests.support.gateway.api import (
    OTHER_WALLET,
    WALLET,
    Gateway,
    open_gateway,
    problem,
    request_body,
)
from workers.chain_indexer.indexer import index_events

BALANCE = "/api/billing/balance"
MOST = from_units(2**96 - 1)


async def balance_of(gateway: Gateway, wallet: str = WALLET) -> Any:
    answer = await gateway.client.get(BALANCE, headers=gateway.login(wallet))
    assert answer.status_code == 200, answer.text
    return answer.json()


def amounts(balance: dict[str, Any]) -> tuple[str, ...]:
    """Available, held, spent, and left of the cap."""
    cap = balance["cap"]
    of_both = (balance["available_far_exact"], balance["held_far_exact"])
    return (*of_both, cap["spent_far_exact"], cap["left_far_exact"])


async def test_money_is_held_and_spent(gateway: Gateway) -> None:
    assert amounts(await balance_of(gateway)) == ("1", "0", "0", "1000000")
    job = await gateway.submit()
    assert amounts(await balance_of(gateway)) == ("0.99908", "0.00092", "0", "999999.99908")
    await job.write("one", " two")
    await job.complete()
    balance = await balance_of(gateway)
    assert amounts(balance) == ("0.99968", "0", "0.00032", "999999.99968")
    assert balance["available_far"] == 0.99968
    assert balance["withdrawal"] is None
    assert balance["cap"]["lowering"] is None


async def test_an_unknown_wallet_has_nothing(gateway: Gateway) -> None:
    balance = await balance_of(gateway, OTHER_WALLET)
    assert balance["wallet_address"] == OTHER_WALLET
    assert amounts(balance) == ("0", "0", "0", "0")


async def test_ones_own_balance_needs_a_login(gateway: Gateway) -> None:
    problem(await gateway.client.get(BALANCE, headers={"Authorization": ""}), 401, "token_missing")
    answer = await gateway.client.get(BALANCE, headers=gateway.node_login("node_0"))
    problem(answer, 403, "scope_missing")


async def move(sessions: Sessions, **changes: Any) -> None:
    async with sessions.begin() as db:
        for name, arguments in changes.items():
            await getattr(ledger, name)(db, wallet=WALLET, **arguments)


async def test_a_requested_withdrawal_is_not_available(empty_gateway: Gateway) -> None:
    """Also what of it is not free yet: then what a hold may take is exactly what is shown."""
    await empty_gateway.deposit("10")
    sessions = empty_gateway.sessions
    await move(
        sessions,
        hold={"job": "job", "amount": from_units(4 * FAR)},
        request_withdrawal={"reference": "asked", "amount": from_units(8 * FAR)},
        deposit={"reference": "more", "amount": from_units(5 * FAR)},
    )
    balance = await balance_of(empty_gateway)
    assert amounts(balance)[:2] == ("3", "4")
    withdrawal = balance["withdrawal"]
    assert withdrawal == {"amount_far": 8.0, "amount_far_exact": "8", "ready_at": None}
    await move(sessions, hold={"job": "all", "amount": from_units(3 * FAR)})
    assert amounts(await balance_of(empty_gateway))[:2] == ("0", "7")


async def test_a_shortfall_is_shown(empty_gateway: Gateway) -> None:
    await empty_gateway.deposit("10")
    async with empty_gateway.sessions.begin() as db:
        await ledger.hold(db, job="job", wallet=WALLET, amount=Decimal(4))
        out = {ledger.clearing(): 8, ledger.available(WALLET): -6, ledger.shortfall(WALLET): -2}
        amounts_out = {account: Decimal(amount) for account, amount in out.items()}
        await post(db, "withdrawn", "out", amounts_out, wallet=WALLET)
    balance = await balance_of(empty_gateway)
    assert balance["shortfall_far_exact"] == "2"
    assert amounts(balance)[:2] == ("0", "4")


async def test_no_figure_is_rounded(empty_gateway: Gateway) -> None:
    async with empty_gateway.sessions.begin() as db:
        await fund(db, wallet=WALLET, amount=MOST, maximum=MOST)
        await ledger.hold(db, job="job", wallet=WALLET, amount=from_units(1))
    most = "79228162514.264337593543950334"
    assert amounts(await balance_of(empty_gateway)) == (most, "0.000000000000000001", "0", most)


@pytest.fixture
async def on_chain(chain_resources: Resources) -> AsyncIterator[Gateway]:
    async with open_gateway(chain_resources.settings) as opened:
        yield opened


async def follow(resources: Resources) -> None:
    """Index the chain with the confirmations that the settings have now."""
    async with EscrowEventReader.from_settings(resources.settings.payments) as reader:
        await index_events(resources, reader)


async def test_pending_deposits_and_withdrawals_are_shown(
    chain_resources: Resources, chain: Chain, on_chain: Gateway
) -> None:
    payments = chain_resources.settings.payments
    payments.finalized_tag, payments.first_block = False, chain.deployment.block
    actions = Actions(chain)
    user = actions.user(far=3)
    wallet = user.address.lower()
    payments.confirmations = 10**6
    await follow(chain_resources)
    balance = await balance_of(on_chain, wallet)
    assert (balance["incoming_far_exact"], amounts(balance)) == ("3", ("0", "0", "0", "0"))
    payments.confirmations = 0
    await follow(chain_resources)
    balance = await balance_of(on_chain, wallet)
    assert (balance["incoming_far_exact"], amounts(balance)) == ("0", ("3", "0", "0", "3"))
    actions.call(user, "requestWithdrawal", 2 * FAR)
    actions.call(user, "requestCapLowering", FAR)
    await follow(chain_resources)
    balance = await balance_of(on_chain, wallet)
    assert amounts(balance) == ("1", "0", "0", "1")
    lowering, withdrawal = balance["cap"]["lowering"], balance["withdrawal"]
    assert (withdrawal["amount_far_exact"], lowering["maximum_far_exact"]) == ("2", "1")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert withdrawal["ready_at"] > now < lowering["ready_at"]
    actions.call(user, "cancelCapLowering")
    actions.call(user, "cancelWithdrawal")
    await follow(chain_resources)
    balance = await balance_of(on_chain, wallet)
    assert (balance["withdrawal"], balance["cap"]["lowering"]) == (None, None)
    assert amounts(balance) == ("3", "0", "0", "3")


async def test_the_whole_available_balance_can_be_held(gateway: Gateway) -> None:
    """And not one token more."""
    body = request_body(max_tokens=9)
    left = Decimal("0.00092")  # for 8 tokens, and 12 of the prompt
    async with gateway.sessions.begin() as db:
        await ledger.hold(db, job="other", wallet=WALLET, amount=1 - left)
    answer = await gateway.client.post(
        "/api/inference/distributed/generate", json=body, headers={"Prefer": "respond-async"}
    )
    problem(answer, 402, "insufficient_balance")
    await gateway.submit()
    assert amounts(await balance_of(gateway))[0] == "0"
