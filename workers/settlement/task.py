"""One run of settlement: take back what a reorg has undone, finish the open batch, close the next
one, until nothing is due or the time is up."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from web3.exceptions import Web3Exception

from market.chain.errors import ChainError, ChainMoved, ChainUnreachable
from market.chain.open_signer import open_signer, signer_configured
from market.chain.signer import Signer
from market.escrow.reader import EscrowReader
from market.outages import OUTAGES
from market.resources import Resources
from market.settlement.errors import SettlementMismatch, SettlementPaused
from workers.exclusive import Progress, run_while
from workers.settlement import submit
from workers.settlement.alerts import pauses
from workers.settlement.alerts.pauses import AlertReason
from workers.settlement.alerts.withdrawal_alerts import alert_of_withdrawals
from workers.settlement.collect import close_batch
from workers.settlement.dormancy import close_keepalive_batch
from workers.settlement.finality import post_when_final
from workers.settlement.phases import PhaseResult
from workers.settlement.reconcile import reconcile
from workers.settlement.reorg import undo_reorged_batches
from workers.settlement.run_context import OpenBatch, SettlementRun

log = structlog.get_logger()

SETTLER_LOCK = 0x0FA12
"""Key of a Postgres advisory lock: one process signs at a time, so that nonces do not collide."""

POLL_SECONDS = 0.25
"""Seconds before the first poll of the chain; each later wait is twice as long."""

MAX_POLL_SECONDS = 4.0

LOCK_INTERVAL, LOCK_TIMEOUT = 2.0, 2.0
"""Seconds between two statements that keep the lock, and for the answer to one."""


async def settle(ctx: dict[str, Any]) -> None:
    """arq cron: one run. What stops a run is logged, and the next run goes on from there."""
    resources: Resources = ctx["resources"]
    payments = resources.settings.payments
    if not payments.escrow_contract:
        return
    try:
        await alert_of_withdrawals(resources)
    except OUTAGES as error:  # what is settled needs no alert, so settlement goes on
        log.error("withdrawals_not_checked", error=type(error).__name__)
    if not signer_configured(payments):
        return
    try:
        async with EscrowReader.from_settings(payments) as escrow:
            await settle_due(resources, escrow, await open_signer(payments))
    except ChainUnreachable as error:
        pauses.alert(AlertReason.UNREACHABLE, error.detail)
    except ChainMoved as error:
        log.info("settlement_waits", reason=error.detail)
    except ChainError as error:
        log.error("settlement_stopped", code=error.code, reason=error.detail)


async def settle_due(resources: Resources, escrow: EscrowReader, signer: Signer) -> str | None:
    """Settle what is due, for as long as a run may wait for the chain.

    Returns the id of the last batch that was confirmed; none if no batch was, if another process
    settles, or while settlement is paused.

    Raises:
        SettlementPaused: an operator has to look; later runs do nothing until he has.
        ChainUnreachable: no endpoint answers. Nothing is lost.
        ChainError: the contract, the network or the signer refuses the batch.
    """
    run = SettlementRun(resources, escrow, signer)
    async with _settler_lock(resources) as lock:
        if lock is None or await pauses.current_pause(resources.sessions):
            return None
        try:
            return await run_while(_settle_until_stopped(run), _keep_lock(lock, run.progress))
        except Web3Exception as error:
            raise ChainUnreachable(f"An endpoint answers with an error: {error}") from error


async def _settle_until_stopped(run: SettlementRun) -> str | None:
    await undo_reorged_batches(run)
    confirmed = None
    wait = POLL_SECONDS
    deadline = time.monotonic() + run.payments.confirmation_wait
    while True:
        run.progress.mark()
        batch = await run.open_batch()
        result = await _advance_or_pause(run, batch)
        if result is PhaseResult.STOPPED:
            break
        if result is PhaseResult.CONFIRMED and batch is not None:
            confirmed = batch.id
        if result is PhaseResult.WAITING:
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(wait)
            wait = min(2 * wait, MAX_POLL_SECONDS)
        else:
            wait = POLL_SECONDS
    return confirmed


async def _advance_or_pause(run: SettlementRun, batch: OpenBatch | None) -> PhaseResult:
    """Run one phase; a failure is counted, or pauses settlement."""
    try:
        return await (_close_next(run) if batch is None else _advance(run, batch))
    except (ChainUnreachable, SettlementPaused):
        raise
    except ChainMoved as moved:
        log.info("settlement_waits", reason=moved.detail)
        return PhaseResult.WAITING
    except SettlementMismatch as error:
        await pauses.pause(run.sessions, AlertReason.MISMATCH, error.detail)
    except ChainError as error:
        if batch is not None:
            await pauses.count_failure(run, batch, error)
        raise


async def _close_next(run: SettlementRun) -> PhaseResult:
    result = await close_batch(run)
    return await close_keepalive_batch(run) if result is PhaseResult.STOPPED else result


async def _advance(run: SettlementRun, batch: OpenBatch) -> PhaseResult:
    if batch.row.contract not in (None, run.contract):
        raise SettlementMismatch(
            f"Batch {batch.id} was closed for the contract {batch.row.contract}: let it be settled "
            "there first."
        )
    if batch.row.status == "closed":
        return await submit.sign(run, batch)
    if batch.row.status == "signed":
        return await reconcile(run, batch)
    return await post_when_final(run, batch)


@asynccontextmanager
async def _settler_lock(resources: Resources) -> AsyncIterator[AsyncConnection | None]:
    """The connection whose transaction has the lock, by which this process may sign inside the
    ``with`` block; none if another process has the lock. It is released with the transaction,
    however that ends: Postgres ends one that nobody goes on with (`QUICK.idle`)."""
    async with resources.engine.connect() as connection:
        acquired = await connection.scalar(
            text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": SETTLER_LOCK}
        )
        yield connection if acquired else None


async def _keep_lock(lock: AsyncConnection, progress: Progress) -> NoReturn:
    """Keep the lock's transaction alive, as long as the run makes progress. This side gives up
    before Postgres does.

    Raises:
        Stalled: the run makes no progress.
        OSError, SQLAlchemyError: the lock is lost, or nobody knows whether it is.
    """
    while True:
        await asyncio.sleep(LOCK_INTERVAL)
        progress.check()
        async with asyncio.timeout(LOCK_TIMEOUT):
            await lock.execute(text("SELECT 1"))
