"""When an operator has to look. Nothing is settled until `far-mesh settle --resume`."""

from enum import StrEnum
from typing import NoReturn

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert

from market import metrics
from market.chain.errors import ChainError
from market.db import Sessions
from market.money import PLACES, from_units, plain
from market.settings.payments import PaymentsSettings
from market.settlement.errors import SettlementPaused
from market.settlement.tables import Settlement, SettlementPause
from workers.settlement.run_context import SettlementRun
from workers.settlement.steps import Step, step

log = structlog.get_logger()

MAX_FAILURES = 2
"""Refusals in a row after which trying again will not help."""


class AlertReason(StrEnum):
    """Why an operator should look. The first four pause settlement.

    Values are the label ``reason`` of the metric ``far_settlement_alerts_total``.
    """

    LOW_GAS_MONEY = "low_gas_money"
    MISMATCH = "mismatch"
    REVERTED = "reverted"
    FAILURES = "failures"
    FEE_CEILING = "fee_ceiling"
    DAILY_CEILING = "daily_ceiling"
    EXCLUDED = "left_out"
    REORG = "taken_back"
    UNREACHABLE = "unreachable"


def alert(reason: AlertReason, detail: str) -> None:
    """Say so, and go on."""
    metrics.settlement_alerts.labels(reason).inc()
    log.error("settlement_alert", reason=reason, detail=detail)


async def pause(sessions: Sessions, reason: AlertReason, detail: str) -> NoReturn:
    """Settle nothing until an operator has looked.

    Raises:
        SettlementPaused: always.
    """
    with step(Step.PAUSE):
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
    """The pause that nobody has ended."""
    async with sessions() as db:
        found = await db.scalar(select(SettlementPause).where(SettlementPause.ended_at.is_(None)))
    metrics.settlement_paused.set(found is not None)
    return found


async def resume(sessions: Sessions) -> SettlementPause | None:
    """End the pause, and forget what failed before; returns it, or none."""
    with step(Step.PAUSE):
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


async def count_failure(run: SettlementRun, batch: Settlement, error: ChainError) -> None:
    """Remember that a batch was refused.

    Raises:
        SettlementPaused: it was the second time in a row.
    """
    with step(Step.PAUSE):
        async with run.sessions.begin() as db:
            failures = await db.scalar(
                update(Settlement)
                .where(Settlement.id == batch.id)
                .values(failures=Settlement.failures + 1)
                .returning(Settlement.failures)
            )
    if failures is not None and failures >= MAX_FAILURES:
        await pause(run.sessions, AlertReason.FAILURES, f"Batch {batch.id}: {error.detail}")


async def check_gas_money(run: SettlementRun, needed: int) -> None:
    """That the account can pay ``needed`` wei, and a reserve.

    Raises:
        SettlementPaused: it cannot.
    """
    least = max(needed, gas_reserve(run.payments))
    balance = await run.network.balance(run.account)
    if balance < least:
        has, needs = format_coins(balance), format_coins(least)
        detail = f"{run.signer.address} has {has} coins and needs {needs}."
        await pause(run.sessions, AlertReason.LOW_GAS_MONEY, detail)


def gas_reserve(payments: PaymentsSettings) -> int:
    """`min_gas_money` in wei."""
    return int(payments.min_gas_money.scaleb(PLACES))


def format_coins(wei: int) -> str:
    """Wei as coins of the chain, for people."""
    return plain(from_units(wei))
