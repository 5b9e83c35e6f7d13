"""A job: poll it, follow it, cancel it."""

from typing import Annotated

from fastapi import APIRouter, Header, Response, status
from pydantic import StringConstraints
from sse_starlette import EventSourceResponse

from api.http.authentication import CancelCaller, ReadJobsCaller
from api.http.reading.reader_slots import HeldForAnswer
from api.http.services import WithServices
from api.routes.inference.sse import EVENT_STREAM, job_stream
from api.schemas.jobs import JobView
from market.errors import InvalidRequest
from market.jobs import cancellation, queries
from market.jobs.reading import reader_errors
from market.jobs.tables import Job
from mesh import token_stream
from mesh.wire.limits import MAX_TOKENS

router = APIRouter(prefix="/api/inference", tags=["inference"])

LAST = "-done"
"""Ends the id of a stream's last event."""

EventId = Annotated[
    str, StringConstraints(pattern=rf"^([0-9]{{1,{len(str(MAX_TOKENS))}}}({LAST})?)?$")
]
"""Of an event, or nothing: an `EventSource` that has seen none may send an empty one."""


@router.get("/jobs/{request_id}")
async def poll(request_id: str, caller: ReadJobsCaller, services: WithServices) -> JobView:
    """The job now: its status, and the text so far. The text is forgotten after an hour."""
    return JobView.of(await services.snapshots.get(caller.wallet, request_id))


@router.get(
    "/jobs/{request_id}/events",
    response_class=EventSourceResponse,
    responses={
        200: {"content": EVENT_STREAM},
        204: {"description": "`Last-Event-ID` is the last event's: nothing follows it."},
    },
)
async def events(
    request_id: str,
    caller: ReadJobsCaller,
    services: WithServices,
    held: HeldForAnswer,
    last_event_id: Annotated[EventId, Header()] = "",
) -> Response:
    """The job's tokens as server-sent events, from the first, or after `Last-Event-ID`.

    Closing this stream does not cancel the job. An `EventSource`, which connects again when a
    stream ends, is told by 204 to stop.
    """
    held.enter_context(services.reader_slots.hold(caller.wallet, request_id))
    job = await services.snapshots.find(caller.wallet, request_id)
    after = _entry_after(last_event_id, job)
    if last_event_id.endswith(LAST):
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    if job.status in queries.ENDED and not await reader_errors.readable(services, job):
        raise reader_errors.stream_expired(request_id)
    return job_stream(services, job, after)


@router.delete("/jobs/{request_id}")
async def cancel(request_id: str, caller: CancelCaller, services: WithServices) -> JobView:
    """End a job now. You pay for the tokens delivered until then; the rest is returned.

    Cancelling a job that has ended changes nothing.
    """
    job = await services.snapshots.find(caller.wallet, request_id)
    if job.status not in queries.ENDED:
        await cancellation.cancel_and_wait(services, job, services.tokens)
    return JobView.of(await services.snapshots.get(caller.wallet, request_id))


def _entry_after(last_event_id: str, job: Job) -> str:
    if not last_event_id:
        return token_stream.START
    tokens = int(last_event_id.removesuffix(LAST))
    if tokens > job.max_tokens:
        raise InvalidRequest(
            "Last-Event-ID is the id of an event of this stream.", code="last_event_id_malformed"
        )
    return f"{tokens}-0"
