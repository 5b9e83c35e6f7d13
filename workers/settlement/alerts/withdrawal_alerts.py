"""Alerts before users can withdraw what they owe: withdrawals that come before their settlement."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Numeric, Subquery, cast, func, select, true, union_all

from market import metrics
from market.db import Sessions
from market.escrow.tables import ChainEvent
from market.jobs.tables import Job
from market.ledger import withdrawals
from market.ledger.tables import SpendingCap
from market.money import ZERO, format_exact, from_units
from market.resources import Resources
from market.settlement.tables import Settlement
from workers.settlement.alerts import pauses
from workers.settlement.alerts.pauses import AlertReason


@dataclass(frozen=True, slots=True)
class UnsettledWithdrawal:
    """A wallet that owes for generations that are not settled, and has asked for so much that the
    withdrawal would take what it owes.

    ``unsettled``: FAR that it owes. ``ready_at``: Unix time at which it can withdraw; 0 if the
    event of its request is not known.
    """

    wallet: str
    unsettled: Decimal
    ready_at: int


async def alert_of_withdrawals(resources: Resources) -> None:
    """Raise an alert for withdrawals that can run within `withdrawal_alert` seconds and would take
    what their users owe and is not settled, or at any time while settlement is paused. Needs no
    chain, so that it works while none of its endpoints answers."""
    found = await unsettled_withdrawals(resources.long_sessions)
    metrics.unsettled_withdrawals.set(float(sum((each.unsettled for each in found), ZERO)))
    metrics.next_unsettled_withdrawal.set(min((each.ready_at for each in found), default=0))
    if await pauses.current_pause(resources.long_sessions) is None:
        soon = time.time() + resources.settings.payments.withdrawal_alert
        found = [each for each in found if each.ready_at <= soon]
    if not found:
        return
    first = min(found, key=lambda each: each.ready_at)
    total = format_exact(sum((each.unsettled for each in found), ZERO))
    pauses.alert(
        AlertReason.WITHDRAWAL,
        f"{len(found)} users who owe {total} FAR that is not settled have asked for withdrawals "
        f"that would take it; the first {_when(first.ready_at)}: {first.wallet}.",
    )


def _when(ready_at: int) -> str:
    if not ready_at:
        return "can run at a time that is not known"
    if ready_at <= time.time():
        return f"could run since Unix time {ready_at}"
    return f"can run at Unix time {ready_at}"


async def unsettled_withdrawals(sessions: Sessions) -> Sequence[UnsettledWithdrawal]:
    """All wallets whose withdrawal would take what they owe and is not settled."""
    unsettled = _unsettled()
    request = (
        select(ChainEvent.arguments["readyAt"].astext)
        .where(
            ChainEvent.wallet_address == unsettled.c.wallet,
            ChainEvent.name == "WithdrawalRequested",
            ChainEvent.status != "reverted",
        )
        .order_by(ChainEvent.block_number.desc(), ChainEvent.log_index.desc())
        .limit(1)
        .scalar_subquery()
    )
    async with sessions() as db:
        rows = await db.execute(
            select(unsettled.c.wallet, unsettled.c.amount, request)
            .join(SpendingCap, SpendingCap.wallet == unsettled.c.wallet)
            .where(withdrawals.exceeds_balance())
        )
        return [
            UnsettledWithdrawal(wallet, amount, int(ready_at or 0))
            for wallet, amount, ready_at in rows
        ]


def _unsettled() -> Subquery:
    """SQL: what each wallet owes that is not settled: by its generations in no batch, and by the
    batches that are not confirmed. What is settled, however much, is not read."""
    in_no_batch = select(Job.user_wallet.label("wallet"), Job.total_cost_far.label("amount")).where(
        Job.settlement_id.is_(None), Job.total_cost_far > 0
    )
    debit = func.jsonb_each_text(Settlement.debits).table_valued("key", "value").lateral()
    in_batches = (
        select(debit.c.key, cast(debit.c.value, Numeric) * from_units(1))
        .select_from(Settlement)
        .join(debit, true())
        .where(Settlement.status.not_in(("confirmed", "replaced")))
    )
    owed = union_all(in_no_batch, in_batches).subquery()
    return (
        select(owed.c.wallet, func.sum(owed.c.amount).label("amount"))
        .group_by(owed.c.wallet)
        .subquery()
    )
