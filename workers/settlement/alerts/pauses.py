"""Alerts and pauses. While a pause is in force nothing is settled, until an operator has looked
and says `far-mesh settle --resume`."""

from enum import StrEnum
from typing import NoReturn

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert

from market import metrics
from market.chain.errors import ChainError
from market.db import Sessions
from market.money import PLACES, format_exact, from_units
from market.settings.payments import PaymentsSettings
from market.settlement.errors import SettlementPaused
from market.settlement.tables import Settlement, SettlementPause
from workers.settlement.phases import SettlementPhase, phase
from workers.settlement.run_context import OpenBatch, SettlementRun

log = structlog.get_logger()

MAX_FAILURES = 2
"""Refusals of one batch in a row after which settlement pauses."""


class AlertReason(StrEnum):
    """Why an operator should look. The first four pause settlement.

    Values are the label ``reason`` of the metric ``far_settlement_alerts_total``.
    """

    LOW_GAS_BALANCE = "low_gas_money"
    MISMATCH = "mismatch"
    REVERTED = "reverted"
    FAILURES = "failures"
    FEE_CEILING = "fee_ceiling"
    DAILY_CEILING = "daily_ceiling"
    EXCLUDED = "left_out"
    REORG = "taken_back"
    UNREACHABLE = "unreachable"
    WITHDRAWAL = "withdrawal"


def alert(reason: AlertReason, detail: str) -> None:
    """Count and log what an operator should look at, and go on."""
    metrics.settlement_alerts.labels(reason).inc()
    log.error("settlement_alert", reason=reason, detail=detail)


async def pause(sessions: Sessions, reason: AlertReason, detail: str) -> NoReturn:
    """Settle nothing until an operator has looked.

    Raises:
        SettlementPaused: always.
    """
    with phase(SettlementPhase.PAUSE):
        async with sessions.begin() as db:
            await db.execute(
                insert(SettlementPause)
                .values(reason=reason, detail=detail)
                .on_conflict_do_nothing()
            )
    metrics.settlement_paused.set(1)
    alert(reason, detail)
    raise SettlementPaused(f"Settlement is paused ({reason}): {detail}")


async def current_pause(sessions: Sessions) -> SettlementPause | None:
    """The pause that is in force, if one is."""
    async with sessions() as db:
        pause = await db.scalar(select(SettlementPause).where(SettlementPause.ended_at.is_(None)))
    metrics.settlement_paused.set(pause is not None)
    return pause


async def resume(sessions: Sessions) -> SettlementPause | None:
    """End the pause in force, if one is, and return it; counts failures from zero again."""
    with phase(SettlementPhase.PAUSE):
        async with sessions.begin() as db:
            ended = await db.scalar(
                update(SettlementPause)
                .where(SettlementPause.ended_at.is_(None))
                .values(ended_at=func.now())
                .returning(SettlementPause)
            )
            await db.execute(update(Settlement).where(Settlement.failures > 0).values(failures=0))
    metrics.settlement_paused.set(0)
    return ended


async def count_failure(run: SettlementRun, batch: OpenBatch, error: ChainError) -> None:
    """Count that a batch was refused.

    Raises:
        SettlementPaused: the batch was refused `MAX_FAILURES` times in a row.
    """
    with phase(SettlementPhase.PAUSE):
        async with run.sessions.begin() as db:
            failures = await db.scalar(
                update(Settlement)
                .where(Settlement.id == batch.id)
                .values(failures=Settlement.failures + 1)
                .returning(Settlement.failures)
            )
    if failures is not None and failures >= MAX_FAILURES:
        await pause(run.sessions, AlertReason.FAILURES, f"Batch {batch.id}: {error.detail}")


async def check_gas_balance(run: SettlementRun, needed: int) -> None:
    """Check that the account has ``needed`` wei, and no less than `min_gas_money`.

    Raises:
        SettlementPaused: the account has less.
    """
    required = max(needed, gas_reserve(run.payments))
    balance = await run.chain.balance(run.account)
    if balance < required:
        has, needs = format_coins(balance), format_coins(required)
        detail = f"{run.signer.address} has {has} coins and needs {needs}."
        await pause(run.sessions, AlertReason.LOW_GAS_BALANCE, detail)


def gas_reserve(payments: PaymentsSettings) -> int:
    """The setting `min_gas_money`, in wei."""
    return int(payments.min_gas_money.scaleb(PLACES))


def format_coins(wei: int) -> str:
    """Wei as coins of the chain, such as BNB."""
    return format_exact(from_units(wei))
