"""Waits until a mined batch is final, and then posts it to the ledger."""

import structlog
from sqlalchemy import func, select, update

from market import ledger, metrics
from market.jobs.tables import Job, NodeContribution
from market.money import ZERO, format_exact, from_units
from market.settlement.tables import Settlement
from workers.settlement.phases import PhaseResult, SettlementPhase, phase
from workers.settlement.reconcile import check_root, transaction_receipts
from workers.settlement.run_context import OpenBatch, SettlementRun

log = structlog.get_logger()


async def post_when_final(run: SettlementRun, batch: OpenBatch) -> PhaseResult:
    """Post a mined batch that is final; one that a reorg has undone is signed again.

    Raises:
        SettlementMismatch: something else was settled under this batch's id.
    """
    with phase(SettlementPhase.FINALITY):
        if await run.escrow.usage_root_of(batch.id) is None:
            return await _back_to_signed(run, batch)
        receipts = await transaction_receipts(run, batch.transactions)
        mined = next((receipt for receipt in receipts if receipt.succeeded), None)
        final = await run.final_block()
        if mined is not None and mined.block_number > final:
            return PhaseResult.WAITING
        root = await run.escrow.agreed_usage_root_of(batch.id, final)
        if root is None:
            return PhaseResult.WAITING
        check_root(batch, root)
    if mined is None:  # the database has lost our transaction: only the contract knows of it
        return await _post(run, batch, None, final)
    return await _post(run, batch, mined.hash, mined.block_number)


async def _back_to_signed(run: SettlementRun, batch: OpenBatch) -> PhaseResult:
    async with run.sessions.begin() as db:
        await db.execute(
            update(Settlement)
            .where(Settlement.id == batch.id, Settlement.status == "mined")
            .values(status="signed", transaction_hash=None, block_number=None)
        )
    log.warning("settlement_reorg", batch=batch.id, block=batch.row.block_number)
    return PhaseResult.ADVANCED


async def _post(
    run: SettlementRun, batch: OpenBatch, transaction: str | None, block: int
) -> PhaseResult:
    """What was owed becomes paid. Once: the ledger posts each batch's id a single time."""
    paid = {wallet: from_units(units) for wallet, units in batch.content.credits.items()}
    fee = from_units(batch.content.fee)
    with phase(SettlementPhase.POST):
        async with run.sessions.begin() as db:
            await ledger.settle(db, batch=batch.id, amounts={**paid, ledger.PLATFORM: fee})
            sessions = select(Job.id).where(Job.settlement_id == batch.id)
            await db.execute(
                update(NodeContribution)
                .where(NodeContribution.session_id.in_(sessions))
                .values(paid_at=func.now())
                .execution_options(synchronize_session=False)
            )
            await db.execute(
                update(Settlement)
                .where(Settlement.id == batch.id)
                .values(
                    status="confirmed",
                    # A reorg may have moved it to another block since it was mined.
                    transaction_hash=transaction,
                    block_number=block,
                    confirmed_at=func.now(),
                    undone_at=None,
                )
            )
    total = sum(paid.values(), ZERO)
    metrics.payments_released.labels("FAR").inc(len(paid))
    metrics.payments_amount.inc(float(total))
    log.info(
        "settlement_confirmed",
        batch=batch.id,
        transaction=transaction,
        block=block,
        providers=len(paid),
        amount_far=format_exact(total),
        fee_far=format_exact(fee),
    )
    return PhaseResult.CONFIRMED
