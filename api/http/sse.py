"""A job as server-sent events."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.types import Message

from api.http.services import Services
from market.errors import Unavailable
from market.jobs import cancellation
from market.jobs.errors import StreamExpired
from market.jobs.live_session import EndEntry, JobOutcome, TokenEntry
from market.jobs.tables import Job, JobStatus
from market.jobs.token_reader import RESUMABLE_ERRORS, failure, follow
from market.outages import unavailable
from mesh import token_stream
from mesh.token_stream import token_count_at

PING_SECONDS = 15
"""Seconds between comments on a silent stream, so that proxies keep it open."""

EVENT_STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
"""A route's content, for its documentation."""


def job_stream(
    services: Services, request_id: str, after: str = token_stream.START
) -> EventSourceResponse:
    """The job's events after an entry. A client that disconnects may come back for the rest."""
    return _response(_events(services, request_id, after))


def cancelling_stream(services: Services, job: Job) -> EventSourceResponse:
    """The job's events; a client that disconnects before the last one cancels the job.

    Only a client that disconnects counts: a stream that ends otherwise (this replica stops, Redis
    cannot be reached) can be resumed at another replica.
    """
    over = False

    async def events() -> AsyncIterator[dict[str, str]]:
        nonlocal over
        async for event in _events(services, job.request_id):
            yield event
        over = True

    async def client_disconnected(message: Message) -> None:
        if not over:
            services.in_background(cancellation.cancel(services, job))

    return _response(events(), client_disconnected)


async def _events(
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
    except RESUMABLE_ERRORS as error:
        known = error if isinstance(error, Unavailable) else unavailable(error)
        yield {"data": json.dumps({"error": known.problem()})}


def _done(request_id: str, outcome: JobOutcome) -> dict[str, Any]:
    done: dict[str, Any] = {"done": True, "request_id": request_id, **outcome}
    done["cost_far_exact"] = outcome["cost_far"]
    done["cost_far"] = float(outcome["cost_far"])
    if outcome["status"] == JobStatus.FAILED:
        done["error"] = failure(
            request_id, outcome["error"], outcome["total_tokens"], outcome["cost_far"]
        ).problem()
    return done


def _response(
    events: AsyncIterator[dict[str, str]],
    client_disconnected: Callable[[Message], Awaitable[None]] | None = None,
) -> EventSourceResponse:
    return EventSourceResponse(
        events, ping=PING_SECONDS, client_close_handler_callable=client_disconnected
    )
