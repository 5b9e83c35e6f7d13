"""Closes a batch again without the generations for which the contract would revert it.

A user's deposit or cap may fall short, or the daily ceiling be reached. The batch is replaced by
one without them, so that everybody else is paid. This is the one place where a generation goes from
one batch into another, so it first makes sure that the old batch cannot be mined any more: only
signed bytes can be, and only until the chain has used their nonce.
"""

import datetime as dt
from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy import func, select, update

from market.chain.client import ChainClient
from market.chain.errors import ChainError
from market.escrow.errors import SettlementRefused
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job
from market.money import ZERO, to_units
from market.settlement.tables import Settlement, SettlementTransaction
from market.settlement.usage_lines import contributions_of
from workers.settlement.alerts.pauses import AlertReason, alert
from workers.settlement.collect import plan_in_thread, store_batch
from workers.settlement.phases import PhaseResult, SettlementPhase, phase
from workers.settlement.run_context import OpenBatch, SettlementRun

log = structlog.get_logger()

SHORTFALL_REASONS = ("InsufficientDeposit", "CapExceeded")
DAILY_CEILING = "DailyCeilingExceeded"
ALREADY_SETTLED = "BatchAlreadySettled"
"""Names of the contract's errors, as `SettlementRefused.reason` has them."""


async def exclude(run: SettlementRun, batch: OpenBatch, refusal: SettlementRefused) -> PhaseResult:
    """Close the batch again without what the contract refuses.

    Raises:
        SettlementRefused: excluding generations would not help.
    """
    if refusal.reason == ALREADY_SETTLED:
        return await _mark_signed(run, batch)
    by_user = refusal.reason in SHORTFALL_REASONS and refusal.user in batch.content.debits
    if not by_user and refusal.reason != DAILY_CEILING:
        raise refusal
    with phase(SettlementPhase.EXCLUDE):
        if await can_still_be_mined(run, batch):
            return PhaseResult.WAITING
        jobs = await _jobs(run, batch)
        excluded: dict[str, list[Job]] = {}
        if by_user:
            alert(AlertReason.EXCLUDED, refusal.detail)
            # A refusal names one user. There may be others, and each would cost a batch.
            reasons = {str(refusal.user): refusal.reason}
            reasons |= await run.escrow.shortfalls(batch.content.debits)
            for job in jobs:
                if job.user_wallet in reasons:
                    excluded.setdefault(reasons[job.user_wallet], []).append(job)
        else:
            alert(AlertReason.DAILY_CEILING, refusal.detail)
            excluded[DAILY_CEILING] = over_ceiling(jobs, refusal.left or 0)
        await reclose(run, batch, excluded)
        return PhaseResult.ADVANCED


async def can_still_be_mined(run: SettlementRun, batch: OpenBatch) -> bool:
    """Whether one of the batch's transactions was mined, or may be one day, as two endpoints say.
    Those of an account that is no settler any more would revert.

    Raises:
        ChainMoved: the endpoints do not say the same yet.
    """
    if not batch.transactions:
        return False
    final = await run.final_block()

    async def possible(chain: ChainClient) -> bool:
        escrow = EscrowReader(chain, run.escrow.address)
        for account in sorted({transaction.account for transaction in batch.transactions}):
            if not await escrow.is_settler(account, final):
                continue
            used = await chain.nonce(account, final)
            if any(sent.account == account and sent.nonce >= used for sent in batch.transactions):
                return True
        return await escrow.usage_root_of(batch.id) is not None

    return await run.chain.agreed(possible)


async def reclose(
    run: SettlementRun, batch: OpenBatch, excluded: Mapping[str, Sequence[Job]]
) -> None:
    """Close the rest of a batch that cannot be mined any more into a new one, in one transaction.

    Args:
        excluded: Generations that are not in the new batch, by reason. They are due again after
            the setting `retry_left_out`.

    Raises:
        ChainError: another settler has signed, finished or replaced the batch meanwhile; nothing
            was changed.
    """
    chain_id = await run.chain.chain_id()
    fee_recipient = await run.escrow.fee_recipient()
    until = func.now() + dt.timedelta(seconds=run.payments.retry_left_out)
    async with run.sessions.begin() as db:
        still_open = await db.scalar(
            update(Settlement)
            .where(Settlement.id == batch.id, Settlement.status.in_(("closed", "signed")))
            .values(status="replaced")
            .returning(Settlement.id)
        )
        # The row is locked now, and whoever signs locks it first.
        signed = select(func.count()).where(SettlementTransaction.settlement_id == batch.id)
        if still_open is None or await db.scalar(signed) != len(batch.transactions):
            raise ChainError(f"Batch {batch.id} went on meanwhile: another settler is at work.")
        for reason, jobs in excluded.items():
            await db.execute(
                update(Job)
                .where(Job.id.in_([job.id for job in jobs]))
                .values(settlement_id=None, withheld_until=until, withheld_reason=reason)
                .execution_options(synchronize_session=False)
            )
        rest = list(
            await db.scalars(
                select(Job).where(Job.settlement_id == batch.id).order_by(Job.completed_at, Job.id)
            )
        )
        if rest:
            contributions = await contributions_of(db, rest)
            planned = await plan_in_thread(run, rest, contributions, chain_id, fee_recipient)
            await store_batch(db, run.contract, planned, undone_at=batch.row.undone_at)
    log.warning(
        "settlement_reclosed",
        batch=batch.id,
        by=planned.content.id if rest else None,
        excluded={reason: len(jobs) for reason, jobs in excluded.items()},
    )


def over_ceiling(jobs: Sequence[Job], left: int) -> list[Job]:
    """The generations that do not fit into ``left`` base units, when each that fits is taken in
    order."""
    over = []
    for job in jobs:
        cost = to_units(job.total_cost_far or ZERO)
        if cost > left:
            over.append(job)
        else:
            left -= cost
    return over


async def _mark_signed(run: SettlementRun, batch: OpenBatch) -> PhaseResult:
    """The contract has the batch, though we know of no transaction: reconciling finds out."""
    with phase(SettlementPhase.EXCLUDE):
        async with run.sessions.begin() as db:
            await db.execute(
                update(Settlement)
                .where(Settlement.id == batch.id, Settlement.status == "closed")
                .values(status="signed")
            )
    return PhaseResult.ADVANCED


async def _jobs(run: SettlementRun, batch: OpenBatch) -> list[Job]:
    async with run.sessions() as db:
        found = await db.scalars(
            select(Job).where(Job.settlement_id == batch.id).order_by(Job.completed_at, Job.id)
        )
        return list(found)
