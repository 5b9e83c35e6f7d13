"""Jobs read from Postgres: one job, who served it, how it ended."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from market.catalog.prices import Prices
from market.jobs.live_session import JobOutcome
from market.jobs.tables import Job, NodeContribution
from market.money import ZERO, format_exact

ENDED = ("completed", "failed")
"""States that a job does not leave."""

SUPERVISE = "supervise"
"""The workers' task that takes a generation up, or takes it over."""


def in_flight() -> ColumnElement[bool]:
    """SQL: the job has not ended."""
    return Job.status.in_(("pending", "active"))


async def find(db: AsyncSession, request_id: str) -> Job | None:
    """The job of a request id, without its encrypted prompt, which only a
    supervisor needs; none if there is no such job."""
    return await db.scalar(
        select(Job).where(Job.request_id == request_id).options(defer(Job.request_cipher))
    )


def prices_of(job: Job) -> Prices:
    """The prices that were agreed on with the job's user."""
    return Prices(
        token=job.price_per_token_far,
        prompt_token=job.price_per_prompt_token_far,
        cached_prompt_token=job.price_per_cached_prompt_token_far,
    )


async def contributions(db: AsyncSession, job: Job) -> Sequence[NodeContribution]:
    """Who served an ended generation, in the order of the layers."""
    rows = await db.scalars(
        select(NodeContribution)
        .where(NodeContribution.session_id == job.id)
        .order_by(NodeContribution.id)
    )
    return rows.all()


async def outcome(db: AsyncSession, job: Job) -> JobOutcome:
    """How a job ended, for the end of its token stream."""
    return {
        "status": job.status,
        "prompt_tokens": job.prompt_tokens,
        "cached_prompt_tokens": job.cached_prompt_tokens,
        "total_tokens": job.token_count,
        "cost_far": format_exact(job.total_cost_far or ZERO),
        "latency_ms": job.latency_ms,
        "time_to_first_token_ms": job.first_token_ms,
        "finish_reason": job.finish_reason,
        "error": job.error_code,
        "accepted_draft_tokens": job.accepted_draft_tokens,
        "rejected_draft_tokens": job.rejected_draft_tokens,
        "batch_invariant": job.batch_invariant,
        "quantization": job.quantization,
        "nodes_used": [
            {"node_id": part.node_id, "layers": part.layers}
            for part in await contributions(db, job)
        ],
    }
