"""What is kept of requests whose answers are given again, in Postgres, as long as these can be."""

import datetime as dt

import structlog
from cryptography.exceptions import InvalidTag
from sqlalchemy import func, select

from market.db import Sessions
from market.jobs.tables import Job, StoredRequest
from market.prompt_vault import PromptVault

log = structlog.get_logger()


def row_of(vault: PromptVault, job: Job, form: bytes, stream_ttl: int) -> StoredRequest:
    """The row of a job that is written.

    Args:
        form: See :class:`market.jobs.request.JobRequest`.
        stream_ttl: Seconds for which the answer can be read once the job has ended.
    """
    return StoredRequest(
        session_id=job.id,
        cipher=vault.encrypt(_context(job.request_id), form),
        readable_until=job.deadline_at + dt.timedelta(seconds=stream_ttl),
    )


async def read(sessions: Sessions, vault: PromptVault, job: Job) -> bytes | None:
    """What is kept of a job's request; none if nothing is, or not any more."""
    async with sessions() as db:
        cipher = await db.scalar(
            select(StoredRequest.cipher).where(
                StoredRequest.session_id == job.id, StoredRequest.readable_until > func.now()
            )
        )
    if cipher is None:
        return None
    try:
        return vault.decrypt(_context(job.request_id), cipher)
    except InvalidTag:
        log.error("prompt_key_changed", request_id=job.request_id)
        return None


def _context(request_id: str) -> str:
    return f"{request_id}/request"
