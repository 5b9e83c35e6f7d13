"""What became of a signed batch. The contract is asked first: it has the last word."""

from collections.abc import Sequence

import structlog
from sqlalchemy import func, update

from market.chain.client import Receipt
from market.settlement.errors import SettlementMismatch
from market.settlement.tables import Settlement, SettlementTransaction
from workers.settlement import submit
from workers.settlement.pauses import AlertReason, pause
from workers.settlement.run_context import SettlementRun, contract_batch
from workers.settlement.steps import Step, StepResult, step

log = structlog.get_logger()


async def reconcile(run: SettlementRun, batch: Settlement) -> StepResult:
    """Mined, reverted, waiting, or lost; and what follows from it.

    Raises:
        SettlementMismatch: the contract has taken something else under this batch's id.
        SettlementPaused: the transaction was reverted.
        ChainError: the network refuses it.
    """
    with step(Step.RECONCILE):
        # In this order: what was mined before the first question shows in the later ones.
        mined = await run.network.nonce(run.account)
        root = await run.escrow.settled_root(batch.id)
        transactions = await run.transactions(batch)
        receipts = await receipts_of(run, transactions)
        if root is not None:
            return await _mark_mined(run, batch, root, receipts)
        reverted = {receipt.hash for receipt in receipts if not receipt.succeeded}
        reverted -= {known.hash for known in transactions if known.reverted_at is not None}
        if reverted:
            await _mark_reverted(run, reverted)
    if reverted:
        detail = f"Batch {batch.id} was mined and reverted: {', '.join(sorted(reverted))}."
        await pause(run.sessions, AlertReason.REVERTED, detail)
    if any(receipt.succeeded for receipt in receipts):
        return StepResult.WAITING  # for the endpoint that still answers from the block before
    live = [
        transaction
        for transaction in transactions
        if transaction.account == run.account and transaction.nonce >= mined
    ]
    if live:
        return await submit.send_or_replace(run, batch, live, mined)
    # Another transaction took the nonce: none of ours can be mined any more. Should it be mined
    # all the same, after a reorganization, the contract refuses the second.
    log.warning("settlement_nonce_lost", batch=batch.id, mined=mined)
    return await submit.sign(run, batch)


async def receipts_of(
    run: SettlementRun, transactions: Sequence[SettlementTransaction]
) -> list[Receipt]:
    """Receipts of those that were mined."""
    asked = [await run.network.receipt(transaction.hash) for transaction in transactions]
    return [receipt for receipt in asked if receipt is not None]


async def _mark_mined(
    run: SettlementRun, batch: Settlement, root: str, receipts: Sequence[Receipt]
) -> StepResult:
    if root != batch.usage_root:
        raise SettlementMismatch(f"The contract holds usage root {root} for batch {batch.id}.")
    mined = next((receipt for receipt in receipts if receipt.succeeded), None)
    if mined is not None:
        _check_totals(run, batch, mined)
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
    return StepResult.MOVED


def _check_totals(run: SettlementRun, batch: Settlement, mined: Receipt) -> None:
    content = contract_batch(batch)
    ours = (content.debited, sum(content.credits.values()), content.fee)
    theirs = run.escrow.totals(mined, batch.id)
    if theirs is not None and theirs != ours:
        raise SettlementMismatch(
            f"Batch {batch.id}: we wrote {ours}, the contract booked {theirs}."
        )


async def _mark_reverted(run: SettlementRun, hashes: set[str]) -> None:
    async with run.sessions.begin() as db:
        await db.execute(
            update(SettlementTransaction)
            .where(SettlementTransaction.hash.in_(hashes))
            .values(reverted_at=func.now())
        )
