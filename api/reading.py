"""Giving a generation's tokens out, and stopping it."""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import structlog
from fastapi import Request
from redis.exceptions import RedisError
from sqlalchemy import select

from api.http.problem_details import OUTAGES, unavailable
from api.http.services import Services
from api.schemas.base import shown
from api.schemas.jobs import ContributionView, JobView
from market.errors import Unavailable
from market.jobs import live_session, messaging, queries
from market.jobs.errors import GenerationFailed, JobNotFound, StreamExpired
from market.jobs.live_session import EndEntry, TokenEntry
from market.jobs.tables import Job, JobStatus
from market.money import ZERO, plain
from market.routing.tiers import Tier
from mesh import token_stream
from mesh.token_stream import token_count_at
from mesh.wire import Cancel

log = structlog.get_logger()

POLL = 1.0
"""Seconds one read waits for a token before it looks whether the job is still alive."""

CANCEL_WAIT = 3.0
"""Seconds a cancel waits for the end, so that its answer can say what it cost."""

DEADLINE_GRACE = dt.timedelta(minutes=1)
"""What a job may take to end after its deadline, before its readers are sent away."""

NOT_THE_END: tuple[type[Exception], ...] = (Unavailable, *OUTAGES)
"""What ends a stream but not its job: whoever comes back resumes after the last id."""

FAILURES = {
    "no_route": "No route could be found in time: some layer had no healthy node.",
    "deadline_exceeded": "The generation did not end before its deadline.",
    "prompt_lost": "The prompt was erased before the generation could go on.",
    "stalled": "Every route that was tried stopped answering.",
}
"""What a failed job's code means, for people. Nothing was charged in any of these."""


async def find(services: Services, wallet: str, request_id: str) -> Job:
    """The user's own job.

    Raises:
        JobNotFound: no such job, or another user's.
    """
    job = None
    if request_id.isprintable():  # Postgres has no NUL in a text
        async with services.sessions() as db:
            job = await queries.find(db, request_id)
    if job is None or job.user_wallet != wallet:
        raise JobNotFound("You have no job of this id.")
    return job


async def follow(
    services: Services, request_id: str, after: str = token_stream.START
) -> AsyncIterator[TokenEntry | EndEntry | None]:
    """Each token after an entry, once and in order, and the summary last.

    Gives none now and then while nothing comes, so that the caller can look after its client.

    Raises:
        StreamExpired: the job ended long ago and its tokens are forgotten.
        Unavailable: no worker is there to end the job, although its deadline has passed.
    """
    while True:
        entries = await live_session.read(services.redis, request_id, after, wait=POLL)
        for entry in entries:
            if isinstance(entry, EndEntry) and _lacks_tokens(entry):
                raise _forgotten(request_id)
            after = entry.entry_id
            yield entry
            if isinstance(entry, EndEntry):
                return
        if entries:
            continue
        ended = await _ended(services, request_id, after)
        if ended is not None:
            yield ended
            return
        yield None


async def _ended(services: Services, request_id: str, after: str) -> EndEntry | None:
    """The summary from Postgres, for a stream that will not bring one."""
    async with services.sessions() as db:
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
        if job.status == JobStatus.COMPLETED and token_count_at(after) < job.token_count:
            if await readable(services, job):
                return None  # the rest is there
            raise _forgotten(request_id)
        return EndEntry(f"{token_count_at(after)}-1", await queries.outcome(db, job))


async def readable(services: Services, job: Job) -> bool:
    """Whether Redis still has all tokens of a completed job."""
    newest = await live_session.last_entry_id(services.redis, job.request_id)
    return token_count_at(newest) >= job.token_count


def _lacks_tokens(summary: EndEntry) -> bool:
    """Redis lost the tokens between the job's end and its summary."""
    delivered: int = summary.outcome["total_tokens"]
    return token_count_at(summary.entry_id) < delivered


def _forgotten(request_id: str) -> StreamExpired:
    return StreamExpired(f"The tokens of {request_id} have been forgotten.")


async def sse_events(
    services: Services, request_id: str, after: str = token_stream.START
) -> AsyncIterator[dict[str, str]]:
    """A generation as server-sent events (§7.1), each with the id to resume after."""
    try:
        async for entry in follow(services, request_id, after):
            if isinstance(entry, TokenEntry):
                data: dict[str, Any] = {"token": entry.text, "request_id": request_id}
                yield {"id": str(token_count_at(entry.entry_id)), "data": json.dumps(data)}
            elif isinstance(entry, EndEntry):
                done = _done(request_id, entry.outcome)
                yield {"id": f"{token_count_at(entry.entry_id)}-done", "data": json.dumps(done)}
    except StreamExpired as error:
        yield {"data": json.dumps({"done": True, "error": error.problem()})}
    except NOT_THE_END as error:
        known = error if isinstance(error, Unavailable) else unavailable(error)
        yield {"data": json.dumps({"error": known.problem()})}


def _done(request_id: str, outcome: dict[str, Any]) -> dict[str, Any]:
    done = {"done": True, "request_id": request_id, **outcome}
    done["cost_far_exact"] = outcome["cost_far"]
    done["cost_far"] = float(outcome["cost_far"])
    if outcome["status"] == JobStatus.FAILED:
        done["error"] = failure(outcome["error"]).problem()
    return done


def failure(code: str | None) -> GenerationFailed:
    """The error of a failed job."""
    error = GenerationFailed(FAILURES.get(code or "", "The mesh could not finish.") + " Refunded.")
    error.code = code or error.code
    return error


async def wait_for_end(services: Services, request: Request, request_id: str) -> bool:
    """Wait until the job ends; false if the client went away first."""
    async for _ in follow(services, request_id):
        if await request.is_disconnected():
            return False
    return True


async def view(services: Services, job: Job) -> JobView:
    """The job as its user sees it now, with all text so far."""
    entries = await live_session.read(services.redis, job.request_id, token_stream.START)
    tokens = [entry for entry in entries if isinstance(entry, TokenEntry)]
    async with services.sessions() as db:
        parts = await queries.contributions(db, job)
    forgotten = job.status in queries.ENDED and len(tokens) < job.token_count
    cost = job.total_cost_far or ZERO
    return JobView(
        request_id=job.request_id,
        status=JobStatus(job.status),
        model_id=job.model_id,
        tier=Tier(job.tier),
        started_at=job.started_at,
        completed_at=job.completed_at,
        text=None if forgotten else "".join(token.text for token in tokens),
        tokens_generated=job.token_count if job.status in queries.ENDED else len(tokens),
        prompt_tokens=job.prompt_tokens,
        cost_far=shown(cost),
        cost_far_exact=plain(cost),
        platform_fee_far_exact=None if job.fee_far is None else plain(job.fee_far),
        price_per_token_far_exact=plain(job.price_per_token_far),
        hold_far_exact=plain(job.hold_far),
        latency_ms=job.latency_ms,
        time_to_first_token_ms=job.first_token_ms,
        finish_reason=job.finish_reason,
        error=job.error_code,
        nodes_used=[
            ContributionView(
                node_id=part.node_id,
                layers=part.layers,
                wallet_address=part.wallet_address,
                tokens_contributed=part.tokens_contributed,
                payment_far=shown(part.payment_far),
                payment_far_exact=plain(part.payment_far),
            )
            for part in parts
        ],
    )


async def cancel(services: Services, job: Job) -> None:
    """Ask for the end of a job. Its user pays for what was delivered until then."""
    async with services.sessions.begin() as db:
        row = await db.get(Job, job.id, with_for_update=True)
        if row is None or row.status in queries.ENDED:
            return
        row.cancel_requested = True
    try:
        await messaging.publish_event(services.redis, Cancel(job.request_id, job.epoch))
    except (RedisError, OSError) as error:  # the supervisor sees it when it renews its lease
        log.warning("cancel_not_told", request_id=job.request_id, error=type(error).__name__)


async def cancel_and_wait(services: Services, job: Job) -> None:
    """As :func:`cancel`, and give the supervisor a moment to end the job."""
    await cancel(services, job)
    with suppress(TimeoutError, StreamExpired, Unavailable):
        async with asyncio.timeout(CANCEL_WAIT):
            after = await live_session.last_entry_id(services.redis, job.request_id)
            async for _ in follow(services, job.request_id, after):
                pass
