"""A job's tokens, each once and in order, and its end."""

import datetime as dt
from collections.abc import AsyncIterator

import structlog
from sqlalchemy import select

from market.errors import Unavailable
from market.jobs import live_session, queries
from market.jobs.errors import GenerationFailed, JobNotFound, StreamExpired
from market.jobs.live_session import EndEntry, TokenEntry
from market.jobs.tables import Job
from market.outages import OUTAGES
from market.resources import Resources
from mesh import token_stream
from mesh.token_stream import token_count_at

log = structlog.get_logger()

POLL_SECONDS = 1.0
"""Seconds one read waits for a token before it looks whether the job is still alive."""


DEADLINE_GRACE = dt.timedelta(minutes=1)
"""What a job may take to end after its deadline, before its readers are sent away."""

RESUMABLE_ERRORS: tuple[type[Exception], ...] = (Unavailable, *OUTAGES)
"""What ends a stream but not its job: whoever comes back resumes after the last id."""

FAILURES = {
    "no_route": "No route could be found in time: some layer had no healthy node.",
    "deadline_exceeded": "The generation did not end before its deadline.",
    "prompt_lost": "The prompt was erased before the generation could go on.",
    "stalled": "Every route that was tried stopped answering.",
    "generation_failed": "Two nodes failed at the same point of it, so no third one was tried.",
}
"""What a failed job's code means, for people."""


async def find(resources: Resources, wallet: str, request_id: str) -> Job:
    """The user's own job.

    Raises:
        JobNotFound: no such job, or another user's.
    """
    job = None
    if request_id.isprintable():  # Postgres has no NUL in a text
        async with resources.sessions() as db:
            job = await queries.find(db, request_id)
    if job is None or job.user_wallet != wallet:
        raise JobNotFound("You have no job of this id.")
    return job


async def follow(
    resources: Resources, request_id: str, after: str = token_stream.START
) -> AsyncIterator[TokenEntry | EndEntry | None]:
    """Each token after an entry, once and in order, and the summary last.

    Gives none now and then while nothing comes, so that the caller can look after its client.

    Raises:
        StreamExpired: the job ended long ago and its tokens are forgotten.
        Unavailable: no worker is there to end the job, although its deadline has passed.
    """
    while True:
        entries = await live_session.read(resources.redis, request_id, after, wait=POLL_SECONDS)
        for entry in entries:
            if isinstance(entry, EndEntry) and _lacks_tokens(entry):
                raise _stream_expired(request_id)
            after = entry.entry_id
            yield entry
            if isinstance(entry, EndEntry):
                return
        if entries:
            continue
        ended = await _ended(resources, request_id, after)
        if ended is not None:
            yield ended
            return
        yield None


async def _ended(resources: Resources, request_id: str, after: str) -> EndEntry | None:
    """The summary from Postgres, for a stream that will not bring one."""
    async with resources.sessions() as db:
        # Not the whole row, which holds the prompt: all who wait for a first token ask this.
        status, deadline = (
            await db.execute(
                select(Job.status, Job.deadline_at).where(Job.request_id == request_id)
            )
        ).one()
        if status not in queries.ENDED:
            if dt.datetime.now(dt.UTC) > deadline + DEADLINE_GRACE:
                raise Unavailable("Nobody has ended this job in time. Look again later.")
            return None
        job = await queries.find(db, request_id)
        assert job is not None
        if token_count_at(after) < job.token_count:
            if await readable(resources, job):
                return None  # the rest is there
            raise _stream_expired(request_id)
        return EndEntry(f"{token_count_at(after)}-1", await queries.outcome(db, job))


async def readable(resources: Resources, job: Job) -> bool:
    """Whether Redis still has all tokens of a job that has ended."""
    newest = await live_session.last_entry_id(resources.redis, job.request_id)
    return token_count_at(newest) >= job.token_count


def _lacks_tokens(summary: EndEntry) -> bool:
    """Redis lost the tokens between the job's end and its summary."""
    return token_count_at(summary.entry_id) < summary.outcome["total_tokens"]


def _stream_expired(request_id: str) -> StreamExpired:
    return StreamExpired(f"The tokens of {request_id} have been forgotten.")


def failure(request_id: str, code: str | None, tokens: int, cost_far: str) -> GenerationFailed:
    """The error of a failed job, which delivered ``tokens`` tokens for ``cost_far`` FAR."""
    why = FAILURES.get(code or "", "The mesh could not finish.")
    error = GenerationFailed(
        f"{why} {_charged(tokens, cost_far)}",
        request_id=request_id,
        tokens_generated=tokens,
        cost_far_exact=cost_far,
    )
    error.code = code or error.code
    return error


def _charged(tokens: int, cost_far: str) -> str:
    if not tokens:
        return "Nothing was charged."
    return (
        f"You pay {cost_far} FAR for the prompt and the {tokens} tokens delivered before; the job "
        "has them."
    )
