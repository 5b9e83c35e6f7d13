"""What the next batch would be, for people. Nothing is written, signed or sent."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import func, select

from market.chain.signer import Signer
from market.chain.transactions import Fees
from market.escrow.errors import SettlementRefused
from market.escrow.reader import EscrowReader
from market.jobs.tables import Job
from market.money import ZERO, from_units, plain
from market.resources import Services
from market.settlement.batch_draft import BatchDraft
from market.settlement.tables import Settlement, SettlementPause
from workers.settlement import pauses
from workers.settlement.collect import draft_in_thread, due_conditions, due_jobs
from workers.settlement.exclusions import DAILY_CEILING, SHORTFALL_REASONS, over_ceiling
from workers.settlement.run_context import SettlementRun, contract_batch


@dataclass(frozen=True, slots=True)
class Excluded:
    """Generations that the next batch would not pay for, and why."""

    reason: str
    sessions: int
    amount: Decimal
    """FAR."""


@dataclass(slots=True)
class BatchPreview:
    """The next batch, or the one that is on its way already."""

    open_batch: Settlement | None = None
    pause: SettlementPause | None = None
    draft: BatchDraft | None = None
    gas: int = 0
    fees: Fees | None = None
    balance: int = 0
    refusal: str | None = None
    """Why the contract would take no batch at all."""
    left_out: list[Excluded] = field(default_factory=list)


async def make_preview(services: Services, escrow: EscrowReader, signer: Signer) -> BatchPreview:
    """Look at what is due, and ask the contract what it would say.

    Raises:
        ChainUnreachable: no endpoint answers.
        SettlementMismatch: a generation's parts are not its cost.
    """
    run = SettlementRun(services, escrow, signer)
    plan = BatchPreview(
        open_batch=await run.open_batch(),
        pause=await pauses.current_pause(services.sessions),
        balance=await run.network.balance(run.account),
        fees=(await run.network.fees()).capped(run.fee_ceiling),
        left_out=await _not_due(run),
    )
    chain_id, fee_recipient = await run.network.chain_id(), await escrow.fee_recipient()
    async with run.sessions() as db:
        jobs, contributions = await due_jobs(db, run.payments, lock=False)
        plan.left_out += await _beyond_limits(run, len(jobs))
    # What settling would find out one refusal after the other.
    while jobs and plan.refusal is None:
        draft = await draft_in_thread(run, jobs, contributions, chain_id, fee_recipient)
        try:
            await escrow.simulate(run.account, draft.content)
            plan.draft, plan.gas = draft, await escrow.gas_for(run.account, draft.content)
            break
        except SettlementRefused as refusal:
            out = _excluded_by(jobs, refusal)
            if not out:
                plan.refusal = refusal.detail
            else:
                plan.left_out.append(_summed_up(f"{refusal.reason}: {refusal.user or 'all'}", out))
                gone = {job.id for job in out}
                jobs = [job for job in jobs if job.id not in gone]
    return plan


def describe(plan: BatchPreview) -> list[str]:
    """The plan as lines of text."""
    said = []
    if plan.pause is not None:
        said.append(f"Settlement is PAUSED ({plan.pause.reason}): {plan.pause.detail}")
    if plan.open_batch is not None:
        open_batch = contract_batch(plan.open_batch)
        said.append(f"Batch {open_batch.id} is {plan.open_batch.status}; the next closes after it.")
    if plan.draft is None:
        said.append(plan.refusal or "Nothing is due.")
    else:
        said += _describe_draft(plan, plan.draft)
    for left in plan.left_out:
        amount = plain(left.amount)
        said.append(f"left out: {left.sessions} generations, {amount} FAR: {left.reason}")
    return said


def _describe_draft(plan: BatchPreview, draft: BatchDraft) -> list[str]:
    content = draft.content
    said = [
        f"batch {content.id}",
        f"usage root {content.usage_root}, {len(draft.usage)} lines",
        f"generations {len(draft.jobs)}",
        f"users {len(content.debits)}, debited {plain(from_units(content.debited))} FAR",
        f"providers {len(content.credits)}, credited "
        f"{plain(from_units(sum(content.credits.values())))} FAR",
        f"fee {plain(from_units(content.fee))} FAR to {draft.fee_recipient}",
    ]
    if plan.fees is not None:
        cost = pauses.format_coins(plan.gas * plan.fees.maximum)
        each = plan.gas // len(draft.jobs)
        said.append(
            f"gas at most {plan.gas} ({each} a generation) at {plan.fees.maximum} wei: at most "
            f"{cost} coins of {pauses.format_coins(plan.balance)}"
        )
    for wallet, units in sorted(content.debits.items()):
        said.append(f"  user {wallet} pays {plain(from_units(units))} FAR")
    for wallet, units in sorted(content.credits.items()):
        said.append(f"  provider {wallet} gets {plain(from_units(units))} FAR")
    return said


def _excluded_by(jobs: Sequence[Job], refusal: SettlementRefused) -> list[Job]:
    if refusal.reason in SHORTFALL_REASONS:
        return [job for job in jobs if job.user_wallet == refusal.user]
    if refusal.reason == DAILY_CEILING:
        return over_ceiling(jobs, refusal.left or 0)
    return []


def _summed_up(reason: str, jobs: Sequence[Job]) -> Excluded:
    total = sum((job.total_cost_far or ZERO for job in jobs), ZERO)
    return Excluded(reason, len(jobs), total)


async def _not_due(run: SettlementRun) -> list[Excluded]:
    """Charged and in no batch, but too young or withheld."""
    withheld = Job.withheld_until > func.now()
    query = (
        select(
            withheld.label("withheld"),
            Job.withheld_reason,
            func.count(),
            func.sum(Job.total_cost_far),
        )
        .where(
            Job.settlement_id.is_(None),
            Job.total_cost_far > 0,
            Job.id.not_in(select(Job.id).where(*due_conditions(run.payments))),
        )
        .group_by("withheld", Job.withheld_reason)
    )
    async with run.sessions() as db:
        return [
            Excluded(
                f"withheld ({reason or 'no reason'})" if held else "before the release delay",
                count,
                amount or ZERO,
            )
            for held, reason, count, amount in await db.execute(query)
        ]


async def _beyond_limits(run: SettlementRun, taken: int) -> list[Excluded]:
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
