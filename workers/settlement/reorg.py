"""A confirmed batch that a reorg has undone: it went deeper than what counted as final.

What the ledger has as paid is owed again, and the batch goes from `confirmed` back to `signed`.
From there on it is like any other: its transaction is sent again, and it is posted once it is
final.
"""

from sqlalchemy import func, select, update

from market import ledger
from market.jobs.tables import Job, NodeContribution
from market.settlement.tables import Settlement
from workers.settlement.alerts.pauses import AlertReason, alert
from workers.settlement.phases import SettlementPhase, phase
from workers.settlement.run_context import SettlementRun


async def undo_reorged_batches(run: SettlementRun) -> None:
    """Undo each confirmed batch that is not on the chain any more, the newest first.

    A batch is sent once the one before it is final. So while the newest is there, all are.

    Raises:
        ChainUnreachable: the contract cannot be asked. Nothing is undone on that.
        ChainMoved: the endpoints do not say the same. Nor is it undone on that.
    """
    with phase(SettlementPhase.REORG):
        while (batch := await _newest_confirmed(run)) is not None:
            final = await run.final_block()
            # A branch that does not reach the batch's block yet says nothing about the batch.
            if batch.block_number is None or final < batch.block_number:
                return
            if await run.escrow.agreed_usage_root_of(batch.id, final) is not None:
                return
            if await _undo(run, batch):
                alert(
                    AlertReason.REORG,
                    f"Batch {batch.id} was final in block {batch.block_number}, and is gone.",
                )


async def _newest_confirmed(run: SettlementRun) -> Settlement | None:
    async with run.sessions() as db:
        return await db.scalar(
            select(Settlement)
            .where(Settlement.status == "confirmed", Settlement.contract == run.contract)
            .order_by(Settlement.block_number.desc())
            .limit(1)
        )


async def _undo(run: SettlementRun, batch: Settlement) -> bool:
    """What was paid is owed again, in one transaction. Returns whether that happened now."""
    async with run.sessions.begin() as db:
        undone = await db.scalar(
            update(Settlement)
            .where(Settlement.id == batch.id, Settlement.status == "confirmed")
            .values(
                status="signed",
                undone_at=func.now(),
                transaction_hash=None,
                block_number=None,
                confirmed_at=None,
            )
            .returning(Settlement.id)
        )
        if undone is None:
            return False
        await ledger.reverse(db, kind="settle", reference=batch.id)
        sessions = select(Job.id).where(Job.settlement_id == batch.id)
        await db.execute(
            update(NodeContribution)
            .where(NodeContribution.session_id.in_(sessions))
            .values(paid_at=None)
            .execution_options(synchronize_session=False)
        )
    return True
