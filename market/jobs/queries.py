"""Jobs read from Postgres: one job, who served it, how it ended."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from market.jobs.live_session import JobOutcome
from market.jobs.tables import Job, NodeContribution
from market.money import ZERO, format_exact

ENDED = ("completed", "failed")
"""States that a job does not leave."""

SUPERVISE = "supervise"
"""The workers' task that takes a generation up, or takes it over."""


async def find(db: AsyncSession, request_id: str) -> Job | None:
    """The job of a request id, without its encrypted prompt, which only a
    supervisor needs; none if there is no such job."""
    return await db.scalar(
        select(Job).where(Job.request_id == request_id).options(defer(Job.request_cipher))
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
        "total_tokens": job.token_count,
        "cost_far": format_exact(job.total_cost_far or ZERO),
        "latency_ms": job.latency_ms,
        "time_to_first_token_ms": job.first_token_ms,
        "finish_reason": job.finish_reason,
        "error": job.error_code,
        "nodes_used": [
            {"node_id": part.node_id, "layers": part.layers}
            for part in await contributions(db, job)
        ],
    }
