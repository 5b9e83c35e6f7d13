"""Reconciles a signed batch with the chain: asks the contract first, then for receipts."""

from collections.abc import Sequence

import structlog
from sqlalchemy import func, update

from market.chain.client import TransactionReceipt
from market.settlement.errors import SettlementMismatch
from market.settlement.tables import Settlement, SettlementTransaction
from workers.settlement import submit
from workers.settlement.alerts.pauses import AlertReason, pause
from workers.settlement.phases import PhaseResult, SettlementPhase, phase
from workers.settlement.run_context import OpenBatch, SettlementRun

log = structlog.get_logger()


async def reconcile(run: SettlementRun, batch: OpenBatch) -> PhaseResult:
    """Mark a batch mined or reverted, send its transaction, or sign it again where its nonce is
    lost.

    Raises:
        SettlementMismatch: something else was settled under this batch's id.
        SettlementPaused: the transaction was mined and reverted.
        ChainError: the network refuses the transaction.
    """
    with phase(SettlementPhase.RECONCILE):
        # In this order: what was mined when the nonce was read shows in root and receipts.
        mined = await run.chain.nonce(run.account)
        root = await run.escrow.usage_root_of(batch.id)
        receipts = await transaction_receipts(run, batch.transactions)
        if root is not None:
            return await _mark_mined(run, batch, root, receipts)
        reverted = {receipt.hash for receipt in receipts if not receipt.succeeded}
        reverted -= {sent.hash for sent in batch.transactions if sent.reverted_at is not None}
        if reverted:
            await _mark_reverted(run, reverted)
    if reverted:
        detail = f"Batch {batch.id} was mined and reverted: {', '.join(sorted(reverted))}."
        await pause(run.sessions, AlertReason.REVERTED, detail)
    if any(receipt.succeeded for receipt in receipts):
        return PhaseResult.WAITING  # for the endpoint that still answers from the block before
    live = [
        transaction
        for transaction in batch.transactions
        if transaction.account == run.account and transaction.nonce >= mined
    ]
    if live:
        return await submit.send_or_replace(run, batch, live, mined)
    # Another transaction took the nonce: none of ours can be mined any more. Should one be mined
    # all the same, after a reorg, the contract refuses to settle the batch twice.
    log.warning("settlement_nonce_lost", batch=batch.id, mined=mined)
    return await submit.sign(run, batch)


async def transaction_receipts(
    run: SettlementRun, transactions: Sequence[SettlementTransaction]
) -> list[TransactionReceipt]:
    """The receipts of those transactions that were mined."""
    answers = [
        await run.chain.transaction_receipt(transaction.hash) for transaction in transactions
    ]
    return [receipt for receipt in answers if receipt is not None]


def check_root(batch: OpenBatch, root: str) -> None:
    """Compare what the contract has settled under a batch's id with the batch.

    Raises:
        SettlementMismatch: it is another one.
    """
    if root != batch.row.usage_root:
        raise SettlementMismatch(f"The contract holds usage root {root} for batch {batch.id}.")


async def _mark_mined(
    run: SettlementRun, batch: OpenBatch, root: str, receipts: Sequence[TransactionReceipt]
) -> PhaseResult:
    check_root(batch, root)
    mined = next((receipt for receipt in receipts if receipt.succeeded), None)
    if mined is not None:
        _check_totals(batch, mined)
    async with run.sessions.begin() as db:
        await db.execute(
            update(Settlement)
            .where(Settlement.id == batch.id, Settlement.status == "signed")
            .values(
                status="mined",
                failures=0,
                transaction_hash=mined.hash if mined else None,
                block_number=mined.block_number if mined else None,
            )
        )
    log.info("settlement_mined", batch=batch.id, transaction=mined.hash if mined else None)
    return PhaseResult.ADVANCED


def _check_totals(batch: OpenBatch, mined: TransactionReceipt) -> None:
    settled = batch.call.settled_totals(mined)
    if settled is not None and settled != batch.content.totals:
        raise SettlementMismatch(
            f"Batch {batch.id}: we wrote {batch.content.totals}, the contract booked {settled}."
        )


async def _mark_reverted(run: SettlementRun, hashes: set[str]) -> None:
    async with run.sessions.begin() as db:
        await db.execute(
            update(SettlementTransaction)
            .where(SettlementTransaction.hash.in_(hashes))
            .values(reverted_at=func.now())
        )
