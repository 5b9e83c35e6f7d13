"""A job as it is now: its row, its text so far, and who has served it."""

from collections.abc import Sequence
from dataclasses import dataclass

from market.jobs import live_session, queries
from market.jobs.live_session import TokenEntry
from market.jobs.tables import Job, NodeContribution
from market.resources import Resources
from mesh import token_stream


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """``text``: what has been generated so far; none once the tokens have been forgotten."""

    job: Job
    text: str | None
    tokens_generated: int
    contributions: Sequence[NodeContribution]


async def snapshot_of(resources: Resources, job: Job) -> JobSnapshot:
    """The job now, with all text so far."""
    entries = await live_session.read(resources.redis, job.request_id, token_stream.START)
    tokens = [entry for entry in entries if isinstance(entry, TokenEntry)]
    async with resources.sessions() as db:
        parts = await queries.contributions(db, job)
    ended = job.status in queries.ENDED
    forgotten = ended and len(tokens) < job.token_count
    return JobSnapshot(
        job=job,
        text=None if forgotten else "".join(token.text for token in tokens),
        tokens_generated=job.token_count if ended else len(tokens),
        contributions=parts,
    )
