"""What the next batch would be, shown to an operator. Nothing is written, signed or sent."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import func, select

from market.chain.signer import Signer
from market.chain.transactions import Fees
from market.escrow.errors import SettlementRefused
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job
from market.money import ZERO, format_exact, from_units
from market.resources import Resources
from market.settlement.planned_batch import PlannedBatch
from market.settlement.tables import SettlementPause
from workers.settlement.alerts import pauses
from workers.settlement.collect import due_conditions, due_jobs, plan_in_thread
from workers.settlement.exclusions import DAILY_CEILING, SHORTFALL_REASONS, over_ceiling
from workers.settlement.run_context import OpenBatch, SettlementRun


@dataclass(frozen=True, slots=True)
class Excluded:
    """Generations that the next batch would not pay for, and why."""

    reason: str
    generations: int
    amount: Decimal
    """What they cost, in FAR."""


@dataclass(slots=True)
class BatchPreview:
    """The next batch, and what it has to wait for."""

    open_batch: OpenBatch | None = None
    pause: SettlementPause | None = None
    planned: PlannedBatch | None = None
    """The next batch; none if nothing is due, or the contract would refuse it."""
    gas: int = 0
    """Its gas limit."""
    fees: Fees | None = None
    balance: int = 0
    """What the signer's account has for gas, in wei."""
    refusal: str | None = None
    """Why the contract would settle no batch at all."""
    excluded: list[Excluded] = field(default_factory=list)


async def make_preview(resources: Resources, escrow: EscrowReader, signer: Signer) -> BatchPreview:
    """Draft a batch of what is due, and simulate it, until the contract would settle it.

    Raises:
        ChainUnreachable: no endpoint answers.
        SettlementMismatch: a generation's shares and fee do not sum to its cost.
    """
    run = SettlementRun(resources, escrow, signer)
    preview = BatchPreview(
        open_batch=await run.open_batch(),
        pause=await pauses.current_pause(resources.sessions),
        balance=await run.chain.balance(run.account),
        fees=(await run.chain.suggested_fees()).at_most(run.fee_ceiling),
        excluded=await _not_due(run),
    )
    chain_id, fee_recipient = await run.chain.chain_id(), await escrow.fee_recipient()
    async with run.sessions() as db:
        jobs, contributions = await due_jobs(db, run.payments, lock=False)
        preview.excluded += await _beyond_limits(run, len(jobs))
    # Settling would meet the same refusals, one after the other.
    while jobs and preview.refusal is None:
        planned = await plan_in_thread(run, jobs, contributions, chain_id, fee_recipient)
        call = run.settle_call(planned.content)
        try:
            await call.simulate(run.account)
            preview.planned, preview.gas = planned, await call.estimate_gas(run.account)
            break
        except SettlementRefused as refusal:
            excluded = _excluded_by(jobs, refusal)
            if not excluded:
                preview.refusal = refusal.detail
            else:
                reason = f"{refusal.reason}: {refusal.user or 'all'}"
                preview.excluded.append(_summed_up(reason, excluded))
                ids = {job.id for job in excluded}
                jobs = [job for job in jobs if job.id not in ids]
    return preview


def describe(preview: BatchPreview) -> list[str]:
    """The preview as lines of text."""
    lines = []
    if preview.pause is not None:
        lines.append(f"Settlement is PAUSED ({preview.pause.reason}): {preview.pause.detail}")
    if preview.open_batch is not None:
        status = preview.open_batch.row.status
        lines.append(f"Batch {preview.open_batch.id} is {status}; the next closes after it.")
    if preview.planned is None:
        lines.append(preview.refusal or "Nothing is due.")
    else:
        lines += _describe_plan(preview, preview.planned)
    for each in preview.excluded:
        amount = format_exact(each.amount)
        lines.append(f"excluded: {each.generations} generations, {amount} FAR: {each.reason}")
    return lines


def _describe_plan(preview: BatchPreview, planned: PlannedBatch) -> list[str]:
    content, totals = planned.content, planned.content.totals
    lines = [
        f"batch {content.id}",
        f"usage root {content.usage_root}, {len(planned.usage)} lines",
        f"generations {len(planned.jobs)}",
        f"users {len(content.debits)}, debited {_far(totals.debited)}",
        f"providers {len(content.credits)}, credited {_far(totals.credited)}",
        f"fee {_far(totals.fee)} to {planned.fee_recipient}",
    ]
    if preview.fees is not None:
        gas, price = preview.gas, preview.fees.maximum
        cost, balance = pauses.format_coins(gas * price), pauses.format_coins(preview.balance)
        lines.append(
            f"gas at most {gas} ({gas // len(planned.jobs)} a generation) at {price} wei: at most "
            f"{cost} coins of {balance}"
        )
    for wallet, units in sorted(content.debits.items()):
        lines.append(f"  user {wallet} pays {_far(units)}")
    for wallet, units in sorted(content.credits.items()):
        lines.append(f"  provider {wallet} gets {_far(units)}")
    return lines


def _excluded_by(jobs: Sequence[Job], refusal: SettlementRefused) -> list[Job]:
    """The generations that a refusal excludes from the batch."""
    if refusal.reason in SHORTFALL_REASONS:
        return [job for job in jobs if job.user_wallet == refusal.user]
    if refusal.reason == DAILY_CEILING:
        return over_ceiling(jobs, refusal.left or 0)
    return []


def _summed_up(reason: str, jobs: Sequence[Job]) -> Excluded:
    total = sum((job.total_cost_far or ZERO for job in jobs), ZERO)
    return Excluded(reason, len(jobs), total)


async def _not_due(run: SettlementRun) -> list[Excluded]:
    """What was charged and is in no batch, but is withheld, too recent, or too little so far."""
    withheld = Job.withheld_until > func.now()
    delay = dt.timedelta(seconds=run.payments.release_delay)
    recent = Job.completed_at > func.now() - delay
    query = (
        select(
            withheld.label("withheld"),
            recent.label("recent"),
            Job.withheld_reason,
            func.count(),
            func.sum(Job.total_cost_far),
        )
        .where(
            Job.settlement_id.is_(None),
            Job.total_cost_far > 0,
            Job.id.not_in(select(Job.id).where(*due_conditions(run.payments))),
        )
        .group_by("withheld", "recent", Job.withheld_reason)
    )
    async with run.sessions() as db:
        return [
            Excluded(_why_not_due(run, held, recent, reason), count, amount or ZERO)
            for held, recent, reason, count, amount in await db.execute(query)
        ]


def _why_not_due(run: SettlementRun, held: bool, recent: bool, reason: str | None) -> str:
    if held:
        return f"withheld ({reason or 'no reason'})"
    if recent:
        return "before the release delay"
    least = format_exact(run.payments.settle_amount)
    return f"less than {least} FAR a user, and not {run.payments.settle_age:g} s old"


async def _beyond_limits(run: SettlementRun, taken: int) -> list[Excluded]:
    """What is due beyond the first ``taken`` generations, which fill the next batch."""
    rest = (
        select(Job.total_cost_far)
        .where(*due_conditions(run.payments))
        .order_by(Job.completed_at, Job.id)
        .offset(taken)
        .subquery()
    )
    async with run.sessions() as db:
        count, amount = (
            await db.execute(select(func.count(), func.sum(rest.c.total_cost_far)))
        ).one()
    return [Excluded("for a later batch", count, amount)] if count else []


def _far(units: int) -> str:
    """Base units as exact FAR."""
    return f"{format_exact(from_units(units))} FAR"
