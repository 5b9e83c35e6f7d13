"""Alerts before users can withdraw what they owe: withdrawals that come before their settlement."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import func, or_, select

from market import metrics
from market.db import Sessions
from market.escrow.tables import ChainEvent
from market.jobs.tables import Job
from market.ledger.tables import SpendingCap
from market.money import ZERO, format_exact
from market.resources import Resources
from market.settlement.tables import Settlement
from workers.settlement.alerts import pauses
from workers.settlement.alerts.pauses import AlertReason


@dataclass(frozen=True, slots=True)
class UnsettledWithdrawal:
    """A wallet that has asked for a withdrawal and owes for generations that are not settled.

    ``unsettled``: FAR that it owes. ``ready_at``: Unix time at which it can withdraw; 0 if the
    event of its request is not known.
    """

    wallet: str
    unsettled: Decimal
    ready_at: int


async def alert_of_withdrawals(resources: Resources) -> None:
    """Raise an alert for withdrawals that can run within `withdrawal_alert` seconds although what
    their users owe is not settled, or at any time while settlement is paused. Needs no chain, so
    that it works while none of its endpoints answers."""
    found = await unsettled_withdrawals(resources.sessions)
    metrics.unsettled_withdrawals.set(float(sum((each.unsettled for each in found), ZERO)))
    metrics.next_unsettled_withdrawal.set(min((each.ready_at for each in found), default=0))
    if await pauses.current_pause(resources.sessions) is None:
        soon = time.time() + resources.settings.payments.withdrawal_alert
        found = [each for each in found if each.ready_at <= soon]
    if not found:
        return
    first = min(found, key=lambda each: each.ready_at)
    total = format_exact(sum((each.unsettled for each in found), ZERO))
    pauses.alert(
        AlertReason.WITHDRAWAL,
        f"{len(found)} users who owe {total} FAR that is not settled have asked for withdrawals; "
        f"the first can run at Unix time {first.ready_at}: {first.wallet}.",
    )


async def unsettled_withdrawals(sessions: Sessions) -> Sequence[UnsettledWithdrawal]:
    """All wallets that have asked for a withdrawal and owe something that is not settled."""
    unsettled = (
        select(Job.user_wallet, func.sum(Job.total_cost_far).label("amount"))
        .join(SpendingCap, SpendingCap.wallet == Job.user_wallet)
        .outerjoin(Settlement, Settlement.id == Job.settlement_id)
        .where(
            SpendingCap.withdrawal > 0,
            Job.total_cost_far > 0,
            or_(Job.settlement_id.is_(None), Settlement.status != "confirmed"),
        )
        .group_by(Job.user_wallet)
        .subquery()
    )
    request = (
        select(ChainEvent.arguments["readyAt"].astext)
        .where(
            ChainEvent.wallet_address == unsettled.c.user_wallet,
            ChainEvent.name == "WithdrawalRequested",
            ChainEvent.status != "reverted",
        )
        .order_by(ChainEvent.block_number.desc(), ChainEvent.log_index.desc())
        .limit(1)
        .scalar_subquery()
    )
    async with sessions() as db:
        rows = await db.execute(select(unsettled.c.user_wallet, unsettled.c.amount, request))
        return [
            UnsettledWithdrawal(wallet, amount, int(ready_at or 0))
            for wallet, amount, ready_at in rows
        ]
