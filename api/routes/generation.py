"""Generate text, and read, follow and cancel what was asked for."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

from api import reading, submission
from api.auth import LoggedIn
from api.limits import address_of, limit
from api.services import Services, WithServices
from api.submission import Generate
from mesh import jobs, streams
from mesh.db import InferenceSession as Job
from mesh.errors import InvalidRequest, StreamExpired
from mesh.schemas import InferenceSession, SessionStatus

router = APIRouter(prefix="/api/inference", tags=["inference"])

PING = 15
"""Seconds between comments on a silent stream, so that proxies keep it open."""

MAX_KEY = 255


class Accepted(BaseModel):
    """Where to find an asynchronous job."""

    request_id: str
    status: SessionStatus
    poll_url: str
    events_url: str


@router.post(
    "/distributed/generate",
    response_model=InferenceSession,
    responses={202: {"model": Accepted, "description": "With `Prefer: respond-async`."}},
)
async def generate(
    body: Generate,
    request: Request,
    caller: LoggedIn,
    services: WithServices,
    prefer: Annotated[str, Header()] = "",
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Generate text.

    - As it is, the answer is one JSON document, once all is generated.
    - With `"stream": true` it is a stream of server-sent events.
    - With the header `Prefer: respond-async` (RFC 7240) it is 202 at once, and where to poll or
      follow the job.

    A client that goes away before the end of the first two cancels the generation, and pays for
    what was delivered; an asynchronous job goes on. The same `Idempotency-Key` gives the same job.
    """
    limits = services.settings.limits
    await limit(services, limits.generations_per_ip, "generate", address_of(request, services))
    await limit(services, limits.generations_per_wallet, "generate-wallet", caller.wallet)
    if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_KEY:
        raise InvalidRequest(
            f"Idempotency-Key needs 1 to {MAX_KEY} characters.", code="idempotency_key_too_long"
        )
    job = await submission.submit(services, caller.wallet, body, idempotency_key)
    if "respond-async" in [preference.strip().lower() for preference in prefer.split(",")]:
        return _accepted(job)
    if body.stream:
        return _stream(_cancelling(services, job))
    try:
        ended = await reading.wait_for_end(services, request, job.request_id)
    except StreamExpired:  # a job repeated by its key, long ended
        ended = True
    if not ended:
        await reading.cancel(services, job)
    return await _result(services, job)


@router.get("/jobs/{request_id}")
async def poll(request_id: str, caller: LoggedIn, services: WithServices) -> InferenceSession:
    """The job now: its status, and the text so far. The text is forgotten after an hour."""
    job = await reading.find(services, caller.wallet, request_id)
    return await reading.view(services, job)


@router.get("/jobs/{request_id}/events", response_class=EventSourceResponse)
async def events(
    request_id: str,
    caller: LoggedIn,
    services: WithServices,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The job's tokens as server-sent events, from the first, or after `Last-Event-ID`.

    Closing this stream does not cancel the job.
    """
    job = await reading.find(services, caller.wallet, request_id)
    after = _entry_after(last_event_id)
    if job.status == SessionStatus.COMPLETED:
        newest = await streams.last_entry(services.redis, request_id)
        if streams.index_of(newest) < job.token_count:
            raise StreamExpired(f"The tokens of {request_id} have been forgotten.")
    return _stream(reading.sse_events(services, request_id, after))


@router.delete("/jobs/{request_id}")
async def cancel(request_id: str, caller: LoggedIn, services: WithServices) -> InferenceSession:
    """End a job now. You pay for the tokens delivered until then; the rest is returned.

    Cancelling a job that has ended changes nothing.
    """
    job = await reading.find(services, caller.wallet, request_id)
    if job.status not in jobs.ENDED:
        await reading.cancel(services, job)
        try:
            async with asyncio.timeout(reading.CANCEL_WAIT):
                async for _ in reading.follow(services, request_id):
                    pass
        except TimeoutError:
            pass
    return await reading.view(services, await reading.find(services, caller.wallet, request_id))


def _accepted(job: Job) -> Response:
    accepted = Accepted(
        request_id=job.request_id,
        status=SessionStatus(job.status),
        poll_url=f"/api/inference/jobs/{job.request_id}",
        events_url=f"/api/inference/jobs/{job.request_id}/events",
    )
    headers = {"Location": accepted.poll_url, "Preference-Applied": "respond-async"}
    return JSONResponse(accepted.model_dump(mode="json"), status_code=202, headers=headers)


async def _result(services: Services, job: Job) -> Response:
    ended = await reading.find(services, job.user_wallet, job.request_id)
    if ended.status == SessionStatus.FAILED:
        raise reading.failure(ended.error_code)
    result = await reading.view(services, ended)
    return JSONResponse(result.model_dump(mode="json"))


async def _cancelling(services: Services, job: Job) -> AsyncIterator[dict[str, str]]:
    """The job's events; whoever hangs up before the last one does not want the rest."""
    finished = False
    try:
        async for event in reading.sse_events(services, job.request_id):
            finished = event["id"].endswith("-done") if "id" in event else True
            yield event
    finally:
        if not finished:
            services.in_background(reading.cancel(services, job))


def _stream(events: AsyncIterator[dict[str, str]]) -> Response:
    # no: proxies such as nginx would otherwise collect the tokens before they pass them on.
    return EventSourceResponse(events, ping=PING, headers={"X-Accel-Buffering": "no"})


def _entry_after(last_event_id: str | None) -> str:
    if last_event_id is None:
        return streams.START
    digits = last_event_id.removesuffix("-done")
    if not digits.isdigit():
        raise InvalidRequest(
            "Last-Event-ID is the id of an event of this stream.", code="last_event_id_malformed"
        )
    return f"{int(digits)}-0"
