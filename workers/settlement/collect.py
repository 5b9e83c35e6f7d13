"""Generations that are due, and the one database transaction that closes them into a batch."""

import asyncio
import datetime as dt
from collections.abc import Sequence

import structlog
from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger
from market.jobs.tables import Job
from market.ledger import withdrawals
from market.ledger.tables import SpendingCap
from market.money import format_exact, from_units
from market.settings.payments import PaymentsSettings
from market.settlement.errors import SettlementMismatch
from market.settlement.planned_batch import PlannedBatch, plan_batch, within_line_limit
from market.settlement.tables import Settlement, StoredUsageTree
from market.settlement.usage_lines import Contributions, contributions_of
from workers.settlement.phases import PhaseResult, SettlementPhase, phase
from workers.settlement.run_context import SettlementRun

log = structlog.get_logger()


async def close_batch(run: SettlementRun) -> PhaseResult:
    """Close what is due into a new batch; `STOPPED` if nothing is due.

    Raises:
        SettlementMismatch: the ledger does not owe what the batch would pay.
        ChainUnreachable: the contract cannot be asked for the fee's recipient.
    """
    with phase(SettlementPhase.CLOSE):
        if not await _anything_due(run):
            return PhaseResult.STOPPED
        chain_id = await run.chain.chain_id()
        fee_recipient = await run.escrow.fee_recipient()
        async with run.sessions.begin() as db:
            jobs, contributions = await due_jobs(db, run.payments, lock=True)
            if not jobs:
                return PhaseResult.STOPPED
            planned = await plan_in_thread(run, jobs, contributions, chain_id, fee_recipient)
            await check_owed(db, planned)
            await store_batch(db, run.contract, planned)
    log.info("settlement_closed", batch=planned.content.id, sessions=len(jobs))
    return PhaseResult.ADVANCED


def due_conditions(payments: PaymentsSettings) -> Sequence[ColumnElement[bool]]:
    """Conditions of a generation that is due: released, and its user's released generations are
    worth a line in a batch: by their amount, by the age of one of them, or because the user has
    asked for a withdrawal that would take what they cost, before which they have to be settled.

    So wallets that spend next to nothing do not cost a line each time.
    """
    released = _released(payments)
    if payments.settle_amount == 0:
        return released
    oldest_may_be_from = func.now() - dt.timedelta(seconds=payments.settle_age)
    worth_a_line = (
        select(Job.user_wallet)
        .where(*released)
        .group_by(Job.user_wallet)
        .having(
            or_(
                func.sum(Job.total_cost_far) >= payments.settle_amount,
                func.min(Job.completed_at) <= oldest_may_be_from,
                Job.user_wallet.in_(
                    select(SpendingCap.wallet).where(withdrawals.exceeds_balance())
                ),
            )
        )
    )
    return (*released, Job.user_wallet.in_(worth_a_line))


def _released(payments: PaymentsSettings) -> Sequence[ColumnElement[bool]]:
    """Conditions of a generation that may be settled: ended, charged, in no batch, past the release
    delay, and not withheld."""
    return (
        Job.settlement_id.is_(None),
        Job.total_cost_far > 0,
        Job.completed_at <= func.now() - dt.timedelta(seconds=payments.release_delay),
        or_(
            Job.withheld_until.is_(None),
            Job.withheld_until <= func.now(),
        ),
    )


async def due_jobs(
    db: AsyncSession, payments: PaymentsSettings, *, lock: bool
) -> tuple[list[Job], Contributions]:
    """The oldest generations that are due and fit into one batch, and who served them."""
    query = (
        select(Job)
        .where(*due_conditions(payments))
        .order_by(Job.completed_at, Job.id)
        .limit(payments.max_sessions_per_batch)
    )
    if lock:
        query = query.with_for_update(skip_locked=True)
    jobs = list(await db.scalars(query))
    contributions = await contributions_of(db, jobs)
    return within_line_limit(jobs, contributions, payments.max_lines_per_batch), contributions


async def plan_in_thread(
    run: SettlementRun,
    jobs: Sequence[Job],
    contributions: Contributions,
    chain_id: int,
    fee_recipient: str,
) -> PlannedBatch:
    """`plan_batch` outside the event loop: ten thousand generations take a second to hash."""
    return await asyncio.to_thread(
        plan_batch,
        jobs,
        contributions,
        chain_id=chain_id,
        contract=run.escrow.address,
        fee_recipient=fee_recipient,
    )


async def store_batch(
    db: AsyncSession, contract: str, planned: PlannedBatch, *, undone_at: dt.datetime | None = None
) -> None:
    """Write a batch with its usage tree, and put its generations into it.

    A batch has the same content, and so the same id, as one that was replaced, if nobody is
    excluded any more: then that row is closed again.

    Args:
        undone_at: ``Settlement.undone_at`` of the batch that this one replaces.
    """
    content = planned.content
    await db.execute(
        insert(Settlement)
        .values(
            id=content.id,
            contract=contract,
            undone_at=undone_at,
            debits={wallet: str(units) for wallet, units in content.debits.items()},
            credits={wallet: str(units) for wallet, units in content.credits.items()},
            fee_units=content.fee,
            fee_recipient=planned.fee_recipient,
            usage_root=content.usage_root,
        )
        .on_conflict_do_update(
            index_elements=[Settlement.id],
            set_={"status": "closed", "failures": 0, "undone_at": undone_at},
            where=Settlement.status == "replaced",
        )
    )
    await db.execute(
        insert(StoredUsageTree)
        .values(settlement_id=content.id, nodes=planned.usage.nodes)
        .on_conflict_do_nothing()
    )
    await db.execute(
        update(Job)
        .where(Job.id.in_([job.id for job in planned.jobs]))
        .values(settlement_id=content.id, withheld_until=None, withheld_reason=None)
        .execution_options(synchronize_session=False)
    )


async def check_owed(db: AsyncSession, planned: PlannedBatch) -> None:
    """Check that the ledger owes at least what the batch pays.

    Raises:
        SettlementMismatch: the ledger owes somebody less.
    """
    content = planned.content
    for owner, units in {**content.credits, ledger.PLATFORM: content.fee}.items():
        amount, owed = from_units(units), await ledger.balance(db, ledger.owed(owner))
        if owed < amount:
            raise SettlementMismatch(
                f"The batch would pay {owner} {format_exact(amount)} FAR, the ledger owes "
                f"{format_exact(owed)}."
            )


async def _anything_due(run: SettlementRun) -> bool:
    async with run.sessions() as db:
        found = await db.scalar(select(Job.id).where(*due_conditions(run.payments)).limit(1))
        return found is not None
