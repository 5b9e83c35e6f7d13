"""Users who spend, and withdraw what they owe while nothing can be settled."""

import time
from decimal import Decimal
from typing import NoReturn

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from structlog.testing import capture_logs

from market import ledger
from market.db import Sessions
from market.escrow.reader import EscrowReader
from market.escrow.tables import ChainEvent
from market.money import from_units, to_units
from market.resources import Resources
from market.settlement.tables import SettlementPause
from tests.conftest import Chain
from tests.support.chain.settled_money import PRICE, SIGNER, batches, rich_user, served
from workers.settlement import settle
from workers.settlement.alerts import withdrawal_alerts
from workers.settlement.alerts.withdrawal_alerts import alert_of_withdrawals, unsettled_withdrawals
from workers.settlement.collect import close_batch
from workers.settlement.run_context import SettlementRun

HOUR = 3600


def alerts() -> float:
    labels = {"reason": "withdrawal"}
    return REGISTRY.get_sample_value("far_settlement_alerts_total", labels) or 0


async def request(
    resources: Resources, wallet: str, ready_at: int, amount: Decimal = Decimal(1)
) -> None:
    """The indexer has read that the wallet asked for FAR, by default all it has deposited."""
    async with resources.sessions.begin() as db:
        await ledger.request_withdrawal(db, reference=f"{wallet}:0", wallet=wallet, amount=amount)
        db.add(
            ChainEvent(
                transaction_hash=wallet,
                log_index=0,
                contract="0x" + "11" * 20,
                block_number=1,
                block_hash="0x01",
                name="WithdrawalRequested",
                wallet_address=wallet,
                arguments={
                    "user": wallet,
                    "amount": str(to_units(amount)),
                    "readyAt": str(ready_at),
                },
                status="applied",
            )
        )


async def test_a_pause_alarms_as_soon_as_a_withdrawal_is_asked_for(
    chain_resources: Resources, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    async with chain_resources.sessions.begin() as db:
        db.add(SettlementPause(reason="reverted", detail="by a test"))
    before = alerts()
    await settle({"resources": chain_resources})
    assert alerts() == before
    ready_at = int(time.time()) + 24 * HOUR
    await request(chain_resources, user.address.lower(), ready_at)
    await settle({"resources": chain_resources})
    assert alerts() == before + 1
    assert REGISTRY.get_sample_value("far_settlement_unsettled_withdrawals_far") == pytest.approx(
        0.0005
    )
    assert (
        REGISTRY.get_sample_value("far_settlement_next_unsettled_withdrawal_timestamp_seconds")
        == ready_at
    )


@pytest.mark.parametrize(("hours", "raised"), [(24, 0), (11, 1)])
async def test_without_a_pause_it_alarms_when_time_is_short(
    chain_resources: Resources, chain: Chain, hours: int, raised: int
) -> None:
    """Here nothing can be settled, since no endpoint answers: the alert needs none."""
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await request(chain_resources, user.address.lower(), int(time.time()) + hours * HOUR)
    chain_resources.settings.payments.rpc_urls = ["http://127.0.0.1:9"]
    before = alerts()
    await settle({"resources": chain_resources})
    assert alerts() == before + raised


async def test_what_is_settled_alarms_nobody(chain_resources: Resources, chain: Chain) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await settle({"resources": chain_resources})
    await request(chain_resources, user.address.lower(), int(time.time()) + HOUR)
    assert await unsettled_withdrawals(chain_resources.sessions) == []
    other = await rich_user(chain_resources, chain)
    await request(chain_resources, other.address.lower(), int(time.time()) + HOUR)
    assert await unsettled_withdrawals(chain_resources.sessions) == []


async def test_a_standing_request_that_endangers_nothing_alarms_nobody(
    chain_resources: Resources, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await request(chain_resources, user.address.lower(), int(time.time()) - HOUR, from_units(1))
    assert await unsettled_withdrawals(chain_resources.sessions) == []


async def test_what_is_in_a_batch_alarms_until_the_batch_is_confirmed(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    await request(chain_resources, user.address.lower(), int(time.time()) + HOUR)
    await close_batch(SettlementRun(chain_resources, escrow, SIGNER))
    [found] = await unsettled_withdrawals(chain_resources.sessions)
    assert (found.wallet, found.unsettled) == (user.address.lower(), 5 * PRICE)
    await settle({"resources": chain_resources})
    assert await unsettled_withdrawals(chain_resources.sessions) == []


async def test_the_alert_says_that_a_withdrawal_could_have_run_already(
    chain_resources: Resources, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    ready_at = int(time.time()) - HOUR
    await request(chain_resources, user.address.lower(), ready_at)
    with capture_logs() as logs:
        await alert_of_withdrawals(chain_resources)
    assert f"the first could run since Unix time {ready_at}" in logs[0]["detail"]


async def test_settlement_goes_on_without_the_alert(
    chain_resources: Resources, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its query takes longer than Postgres allows."""

    async def slow(sessions: Sessions) -> NoReturn:
        async with sessions() as db:
            await db.execute(text("SET LOCAL statement_timeout = 20"))
            await db.execute(text("SELECT pg_sleep(9)"))
        raise AssertionError

    monkeypatch.setattr(withdrawal_alerts, "unsettled_withdrawals", slow)
    await served(chain_resources, await rich_user(chain_resources, chain), 5)
    await settle({"resources": chain_resources})
    [batch] = await batches(chain_resources)
    assert batch.status == "confirmed"
