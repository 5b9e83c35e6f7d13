"""The end of a generation: status, counts, contributions and money in one transaction."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from market import ledger, metrics
from market.jobs import queries
from market.jobs.bill import Bill, PromptUse, make_bill
from market.jobs.live_session import JobOutcome, TokenEntry
from market.jobs.reading import stored_tokens
from market.jobs.tables import EndReason, Job, NodeContribution, RouteHop
from market.money import format_exact
from market.resources import Resources
from workers.supervisor.errors import LeaseLost
from workers.supervisor.lease import Lease

log = structlog.get_logger()

MAX_MILLISECONDS = 2**31 - 1
"""The longest time that the columns take: 24 days. A job that was left for longer ends as well."""

_CREDIT_NODES = text(
    """
    WITH shares AS (
        SELECT node_id, tokens, payment FROM node_registry JOIN unnest(
            CAST(:nodes AS text[]), CAST(:tokens AS bigint[]), CAST(:payments AS numeric[])
        ) AS share(node_id, tokens, payment) USING (node_id)
        ORDER BY node_id FOR NO KEY UPDATE OF node_registry
    )
    UPDATE node_registry SET total_tokens_served = total_tokens_served + tokens,
        total_earned_far = total_earned_far + payment
    FROM shares WHERE node_registry.node_id = shares.node_id
    """
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a generation came.

    ``tokens``: all that can be read, after which nobody can write any more. ``first_token_at``:
    Unix time of the first; none if there was none. ``cached``: tokens at the prompt's beginning
    that all nodes had in their caches. ``positions``: tokens of the prompt that each node of the
    route says that it has computed. ``drafts``: draft tokens accepted and rejected.
    """

    tokens: Sequence[TokenEntry]
    first_token_at: float | None = None
    cached: int = 0
    positions: Mapping[str, int] = field(default_factory=dict)
    drafts: tuple[int, int] = (0, 0)


async def end(
    resources: Resources,
    lease: Lease,
    *,
    edge_units: int,
    reason: EndReason,
    code: str | None,
    progress: Progress,
) -> JobOutcome:
    """End a generation, however it ended: its user pays for its prompt and for the tokens that were
    delivered, and gets the rest of the hold back. Its tokens are stored for as long as they may be
    read, in the transaction that charges for them: what nobody can read is not paid for. Nobody
    pays for more tokens than asked for, whatever an edge has written. Before the first token, a
    failure costs nothing, and a cancelled generation what was computed of its prompt.

    Args:
        resources: The database and the settings.
        lease: The lease under which the generation ends.
        edge_units: The edge's work for a token of its model
            (:mod:`mesh.model.compute_cost`).
        reason: ``stop``, ``length``, ``cancelled`` or ``failed``.
        code: Why it failed, for the user; none if it did not.
        progress: How far it came.

    Returns:
        The outcome, for the end of the token stream.

    Raises:
        LeaseLost: another supervisor has taken over; nothing was written.
    """
    async with resources.sessions.begin() as db:
        job = await _locked(db, lease)
        bill = make_bill(
            await _hops(db, job),
            tokens=min(len(progress.tokens), job.max_tokens),
            prompt=_prompt_use(job, reason, progress),
            prices=queries.prices_of(job),
            fee_rate=resources.settings.payments.platform_fee,
            edge_units=edge_units,
        )
        job.error_code = code
        if code is None:
            job.status, job.finish_reason = "completed", reason
        else:
            job.status = "failed"
        job.token_count = len(progress.tokens)
        job.accepted_draft_tokens, job.rejected_draft_tokens = progress.drafts
        job.total_cost_far, job.prompt_cost_far, job.fee_far = bill.cost, bill.prompt_cost, bill.fee
        if progress.first_token_at is not None:
            job.first_token_ms = _milliseconds(progress.first_token_at - job.started_at.timestamp())
        completed_at = _close(job)
        readable_until = completed_at + dt.timedelta(
            seconds=resources.settings.generation.stream_ttl
        )
        db.add_all(stored_tokens.pages_of(resources.vault, job, progress.tokens, readable_until))
        db.add_all(_contributions(job, bill))
        await _post(db, job, bill)
        outcome = await queries.outcome(db, job)
        await _credit_nodes(db, bill)
    _record_metrics(job)
    if job.token_count > job.max_tokens:
        log.error(
            "too_many_tokens",
            request_id=job.request_id,
            tokens=job.token_count,
            asked_for=job.max_tokens,
        )
    _log_end(job, bill)
    return outcome


async def _locked(db: AsyncSession, lease: Lease) -> Job:
    """The job's row, locked.

    Raises:
        LeaseLost: the lease is not the newest, or the job has ended.
    """
    job = await db.scalar(
        select(Job)
        .where(
            Job.id == lease.job.id,
            Job.lease_counter == lease.counter,
            Job.status == "active",
        )
        .with_for_update()
    )
    if job is None:
        raise LeaseLost
    return job


async def _post(db: AsyncSession, job: Job, bill: Bill) -> None:
    """Take the cost from the hold; all of the hold goes back if a failure delivered nothing."""
    if job.status == "failed" and not bill.cost:
        await ledger.release(
            db,
            job=job.request_id,
            wallet=job.user_wallet,
            amount=job.hold_far,
            key=job.key_day,
        )
        return
    await ledger.capture(
        db,
        job=job.request_id,
        wallet=job.user_wallet,
        held_amount=job.hold_far,
        shares=bill.by_wallet(),
        fee=bill.fee,
        key=job.key_day,
    )


def _prompt_use(job: Job, reason: str, progress: Progress) -> PromptUse:
    """What the prompt's part of the bill goes by; the count of cached tokens is kept."""
    job.cached_prompt_tokens = min(
        job.prompt_tokens, max(job.cached_prompt_tokens, progress.cached)
    )
    reported = progress.positions if reason == "cancelled" else {}
    return PromptUse(job.prompt_tokens, job.cached_prompt_tokens, reported)


def _close(job: Job) -> dt.datetime:
    """Note the end's time, which is returned, and erase the prompt."""
    job.completed_at = now = dt.datetime.now(dt.UTC)
    job.latency_ms = _milliseconds((now - job.started_at).total_seconds())
    job.request_cipher = None
    return now


def _milliseconds(seconds: float) -> int:
    return min(max(0, round(seconds * 1000)), MAX_MILLISECONDS)


async def _hops(db: AsyncSession, job: Job) -> list[RouteHop]:
    rows = await db.scalars(
        select(RouteHop)
        .where(RouteHop.session_id == job.id)
        .order_by(RouteHop.epoch, RouteHop.stage)
    )
    return list(rows)


def _contributions(job: Job, bill: Bill) -> list[NodeContribution]:
    return [
        NodeContribution(
            session_id=job.id,
            node_id=share.node_id,
            wallet_address=share.wallet,
            tokens_contributed=share.tokens,
            prompt_tokens_contributed=share.prompt_tokens,
            layers=share.layers,
            payment_far=share.payment,
        )
        for share in bill.shares
    ]


async def _credit_nodes(db: AsyncSession, bill: Bill) -> None:
    """Count what each node served, the last thing before the commit.

    All generations of a node count in one row, which is locked until the commit, so that whatever
    came after this would make them wait for each other. Rows are locked in the order of node ids,
    so that two generations that end cannot deadlock.
    """
    if not bill.shares:
        return
    await db.execute(
        _CREDIT_NODES,
        {
            "nodes": [share.node_id for share in bill.shares],
            "tokens": [share.tokens for share in bill.shares],
            "payments": [share.payment for share in bill.shares],
        },
    )


def _log_end(job: Job, bill: Bill) -> None:
    ended: dict[str, object] = {
        "request_id": job.request_id,
        "tokens_generated": job.token_count,
        "latency_ms": job.latency_ms,
        "nodes_used": len(bill.shares),
        "cost_far": format_exact(bill.cost),
    }
    if job.status == "failed":
        log.warning("inference_failed", **ended, code=job.error_code)
    else:
        log.info("inference_completed", **ended, finish_reason=job.finish_reason)


def _record_metrics(job: Job) -> None:
    status = "cancelled" if job.finish_reason == "cancelled" else job.status
    metrics.inference_requests.labels(job.model_id, job.tier, status).inc()
    if job.status == "completed" and job.latency_ms is not None:
        labels = (job.model_id, job.tier)
        metrics.inference_latency.labels(*labels).observe(job.latency_ms / 1000)
        if job.first_token_ms is not None:
            metrics.time_to_first_token.labels(*labels).observe(job.first_token_ms / 1000)
