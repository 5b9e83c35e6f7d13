"""Users who spend, and withdraw what they owe while nothing can be settled."""

import time
from decimal import Decimal

import pytest
from prometheus_client import REGISTRY

from market import ledger
from market.escrow.tables import ChainEvent
from market.resources import Resources
from market.settlement.tables import SettlementPause
from tests.conftest import Chain
from tests.support.chain.settled_money import rich_user, served
from workers.settlement import settle
from workers.settlement.alerts.withdrawal_alerts import unsettled_withdrawals

HOUR = 3600


def alerts() -> float:
    labels = {"reason": "withdrawal"}
    return REGISTRY.get_sample_value("far_settlement_alerts_total", labels) or 0


async def request(resources: Resources, wallet: str, ready_at: int) -> None:
    """The indexer has read that the wallet asked for half a FAR."""
    async with resources.sessions.begin() as db:
        await ledger.request_withdrawal(
            db, reference=f"{wallet}:0", wallet=wallet, amount=Decimal("0.5")
        )
        db.add(
            ChainEvent(
                transaction_hash=wallet,
                log_index=0,
                contract="0x" + "11" * 20,
                block_number=1,
                block_hash="0x01",
                name="WithdrawalRequested",
                wallet_address=wallet,
                arguments={"user": wallet, "amount": str(5 * 10**17), "readyAt": str(ready_at)},
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
