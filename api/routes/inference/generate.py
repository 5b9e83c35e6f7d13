"""Generate text, and read, follow and cancel what was asked for."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.types import Message

from api import reading, submission
from api.http.authentication import LoggedIn
from api.http.rate_limits import address_of, limit
from api.http.services import Services, WithServices
from api.schemas.jobs import JobView
from api.submission import Generate
from market.errors import InvalidRequest
from market.jobs import queries
from market.jobs.errors import StreamExpired
from market.jobs.tables import Job, JobStatus
from mesh import token_stream

router = APIRouter(prefix="/api/inference", tags=["inference"])

PING = 15
"""Seconds between comments on a silent stream, so that proxies keep it open."""

MAX_KEY = 255

EVENT_STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}


class Accepted(BaseModel):
    """Where to find an asynchronous job."""

    request_id: str
    status: JobStatus
    poll_url: str
    events_url: str


@router.post(
    "/distributed/generate",
    response_model=JobView,
    responses={
        200: {"content": EVENT_STREAM},
        202: {"model": Accepted, "description": "With `Prefer: respond-async`."},
    },
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
    address = address_of(request, services)
    await limit(services, limits.generations_per_ip, "generate", address)
    await limit(services, limits.generations_per_wallet, "generate-wallet", caller.wallet)
    if idempotency_key is not None:
        _check_key(idempotency_key)
    near = services.places.about(address)
    job = await submission.submit(services, caller.wallet, body, idempotency_key, near=near)
    if "respond-async" in [preference.strip().lower() for preference in prefer.split(",")]:
        return _accepted(job)
    if body.stream:
        return _cancelling_stream(services, job)
    try:
        ended = await reading.wait_for_end(services, request, job.request_id)
    except StreamExpired:  # a job repeated by its key, long ended
        ended = True
    if not ended:
        await reading.cancel(services, job)
    return await _result(services, job)


@router.get("/jobs/{request_id}")
async def poll(request_id: str, caller: LoggedIn, services: WithServices) -> JobView:
    """The job now: its status, and the text so far. The text is forgotten after an hour."""
    job = await reading.find(services, caller.wallet, request_id)
    return await reading.view(services, job)


@router.get(
    "/jobs/{request_id}/events",
    response_class=EventSourceResponse,
    responses={200: {"content": EVENT_STREAM}},
)
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
    after = _entry_after(last_event_id, job)
    if job.status == JobStatus.COMPLETED and not await reading.readable(services, job):
        raise StreamExpired(f"The tokens of {request_id} have been forgotten.")
    return _stream(reading.sse_events(services, request_id, after))


@router.delete("/jobs/{request_id}")
async def cancel(request_id: str, caller: LoggedIn, services: WithServices) -> JobView:
    """End a job now. You pay for the tokens delivered until then; the rest is returned.

    Cancelling a job that has ended changes nothing.
    """
    job = await reading.find(services, caller.wallet, request_id)
    if job.status not in queries.ENDED:
        await reading.cancel_and_wait(services, job)
    return await reading.view(services, await reading.find(services, caller.wallet, request_id))


def _accepted(job: Job) -> Response:
    accepted = Accepted(
        request_id=job.request_id,
        status=JobStatus(job.status),
        poll_url=f"/api/inference/jobs/{job.request_id}",
        events_url=f"/api/inference/jobs/{job.request_id}/events",
    )
    headers = {"Location": accepted.poll_url, "Preference-Applied": "respond-async"}
    return JSONResponse(accepted.model_dump(mode="json"), status_code=202, headers=headers)


async def _result(services: Services, job: Job) -> Response:
    ended = await reading.find(services, job.user_wallet, job.request_id)
    if ended.status == JobStatus.FAILED:
        raise reading.failure(ended.error_code)
    result = await reading.view(services, ended)
    return JSONResponse(result.model_dump(mode="json"))


def _cancelling_stream(services: Services, job: Job) -> Response:
    """The job's events; whoever hangs up before the last one does not want the rest.

    Only a client that hangs up counts: a stream that ends otherwise (this replica stops, Redis
    cannot be reached) can be resumed elsewhere.
    """
    over = False

    async def events() -> AsyncIterator[dict[str, str]]:
        nonlocal over
        async for event in reading.sse_events(services, job.request_id):
            yield event
        over = True

    async def hung_up(message: Message) -> None:
        if not over:
            services.in_background(reading.cancel(services, job))

    return _stream(events(), hung_up)


def _stream(
    events: AsyncIterator[dict[str, str]],
    hung_up: Callable[[Message], Awaitable[None]] | None = None,
) -> Response:
    return EventSourceResponse(events, ping=PING, client_close_handler_callable=hung_up)


def _check_key(key: str) -> None:
    reason = None
    if not key:
        reason = "empty"
    elif len(key) > MAX_KEY:
        reason = "too_long"
    elif not (key.isascii() and key.isprintable()):
        reason = "malformed"
    if reason is not None:
        raise InvalidRequest(
            f"Idempotency-Key needs 1 to {MAX_KEY} printable ASCII characters.",
            code=f"idempotency_key_{reason}",
        )


def _entry_after(last_event_id: str | None, job: Job) -> str:
    if not last_event_id:
        return token_stream.START
    digits = last_event_id.removesuffix("-done")
    # No longer than any id of this stream, so that it is a number that Redis can take.
    ours = digits.isascii() and digits.isdigit() and len(digits) <= len(str(job.max_tokens))
    if not ours or int(digits) > job.max_tokens:
        raise InvalidRequest(
            "Last-Event-ID is the id of an event of this stream.", code="last_event_id_malformed"
        )
    return f"{int(digits)}-0"
