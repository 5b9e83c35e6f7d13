"""A batch that the contract would refuse because of some users, or of the daily ceiling.

It is replaced by one without what is in the way, so that everybody else is paid. This is the one
place where a generation goes from one batch into another, so it asks first whether the old batch
can still be mined: only bytes that are signed can, and only until the chain has used their nonce.
"""

import datetime as dt
from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy import func, select, update

from market.chain.errors import ChainError
from market.escrow.errors import SettlementRefused
from market.jobs.tables import Job
from market.money import ZERO, to_units
from market.settlement.tables import Settlement, SettlementTransaction
from market.settlement.usage_lines import contributions_of
from workers.settlement.collect import draft_in_thread, store_batch
from workers.settlement.pauses import AlertReason, alert
from workers.settlement.run_context import SettlementRun, contract_batch
from workers.settlement.steps import Step, StepResult, step

log = structlog.get_logger()

SHORTFALL_REASONS = ("InsufficientDeposit", "CapExceeded")
DAILY_CEILING = "DailyCeilingExceeded"
ALREADY_SETTLED = "BatchAlreadySettled"


async def exclude(run: SettlementRun, batch: Settlement, refusal: SettlementRefused) -> StepResult:
    """Do what a refusal asks for.

    Raises:
        SettlementRefused: it is none that leaving something out would mend.
    """
    if refusal.reason == ALREADY_SETTLED:
        return await _mark_signed(run, batch)
    by_user = refusal.reason in SHORTFALL_REASONS and refusal.user in batch.debits
    if not by_user and refusal.reason != DAILY_CEILING:
        raise refusal
    with step(Step.EXCLUDE):
        transactions = await run.transactions(batch)
        if await can_still_be_mined(run, batch, transactions):
            return StepResult.WAITING
        jobs = await _jobs(run, batch)
        out: dict[str, list[Job]] = {}
        if by_user:
            alert(AlertReason.EXCLUDED, refusal.detail)
            # A refusal names one user. There may be others, and each would cost a batch.
            short = {str(refusal.user): refusal.reason}
            short |= await run.escrow.short(contract_batch(batch).debits)
            for job in jobs:
                if job.user_wallet in short:
                    out.setdefault(short[job.user_wallet], []).append(job)
        else:
            alert(AlertReason.DAILY_CEILING, refusal.detail)
            out[DAILY_CEILING] = over_ceiling(jobs, refusal.left or 0)
        await replace(run, batch, out, signed=len(transactions))
        return StepResult.MOVED


async def can_still_be_mined(
    run: SettlementRun, batch: Settlement, transactions: Sequence[SettlementTransaction]
) -> bool:
    """Whether one of the batch's transactions was mined, or may be one day. Those of an account
    that is no settler any more would revert."""
    if not transactions:
        return False
    final = await run.final_block()
    for account in sorted({transaction.account for transaction in transactions}):
        if not await run.escrow.may_settle(account, final):
            continue
        used = await run.network.nonce(account, final)
        if any(other.account == account and other.nonce >= used for other in transactions):
            return True
    return await run.escrow.settled_root(batch.id) is not None


async def replace(
    run: SettlementRun,
    batch: Settlement,
    out: Mapping[str, Sequence[Job]],
    *,
    signed: int,
) -> None:
    """Close the rest of a batch into another, in one transaction.

    Args:
        out: What is not in it, and waits for `retry_left_out`; by reason.
        signed: How many transactions the batch had when it could not be mined any more.

    Raises:
        ChainError: another settler has signed or finished it by now; nothing was changed.
    """
    chain_id = await run.network.chain_id()
    fee_recipient = await run.escrow.fee_recipient()
    until = func.now() + dt.timedelta(seconds=run.payments.retry_left_out)
    async with run.sessions.begin() as db:
        open_still = await db.scalar(
            update(Settlement)
            .where(Settlement.id == batch.id, Settlement.status.in_(("closed", "signed")))
            .values(status="replaced")
            .returning(Settlement.id)
        )
        # The row is locked now, and who signs locks it first.
        known = select(func.count()).where(SettlementTransaction.settlement_id == batch.id)
        if open_still is None or await db.scalar(known) != signed:
            raise ChainError(f"Batch {batch.id} went on meanwhile: another settler is at work.")
        for reason, jobs in out.items():
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
            draft = await draft_in_thread(run, rest, contributions, chain_id, fee_recipient)
            await store_batch(db, run.contract, draft, undone_at=batch.undone_at)
    log.warning(
        "settlement_reclosed",
        batch=batch.id,
        by=draft.content.id if rest else None,
        left_out={reason: len(jobs) for reason, jobs in out.items()},
    )


def over_ceiling(jobs: Sequence[Job], left: int) -> list[Job]:
    """The generations, in order, that do not fit into ``left`` base units any more."""
    out = []
    for job in jobs:
        cost = to_units(job.total_cost_far or ZERO)
        if cost > left:
            out.append(job)
        else:
            left -= cost
    return out


async def _mark_signed(run: SettlementRun, batch: Settlement) -> StepResult:
    """The contract has it, though we know of no transaction: reconciling finds out."""
    with step(Step.EXCLUDE):
        async with run.sessions.begin() as db:
            await db.execute(
                update(Settlement)
                .where(Settlement.id == batch.id, Settlement.status == "closed")
                .values(status="signed")
            )
    return StepResult.MOVED


async def _jobs(run: SettlementRun, batch: Settlement) -> list[Job]:
    async with run.sessions() as db:
        found = await db.scalars(
            select(Job).where(Job.settlement_id == batch.id).order_by(Job.completed_at, Job.id)
        )
        return list(found)
