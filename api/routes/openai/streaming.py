"""Server-sent events as OpenAI has them: data alone, and ``[DONE]`` at the end."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Message

from api.http.services import Services
from api.routes.inference.sse import EventStream
from api.routes.openai import attempts
from api.routes.openai.following import Reading
from api.schemas.openai.errors import openai_error
from market.errors import Unavailable
from market.jobs.errors import GenerationFailed, StreamExpired
from market.jobs.reading.reader_errors import RESUMABLE_ERRORS
from market.jobs.tables import Job
from market.outages import unavailable
from mesh.errors import MeshError

DONE = ServerSentEvent("[DONE]").encode()

JOBS_HEADER = "X-Job-Ids"
"""Of a stream's answer: its jobs, each of which can be followed after a token at
`/api/inference/jobs/{id}/events`."""


def data(document: dict[str, Any]) -> bytes:
    """One event."""
    return ServerSentEvent(json.dumps(document, ensure_ascii=False)).encode()


def cancelling_stream(
    services: Services,
    readings: Sequence[Reading],
    events: AsyncIterator[bytes],
    *,
    attempt: int | None,
) -> EventSourceResponse:
    """The events, an error if there is one, and ``[DONE]``. A client that goes away before the end
    cancels the jobs.

    Args:
        attempt: See :mod:`api.routes.openai.attempts`.
    """
    begun = over = False

    async def noted_events() -> AsyncIterator[bytes]:
        nonlocal begun, over
        async for event in _to_the_end(events):
            over = event is DONE
            yield event
            begun = True

    async def client_disconnected(message: Message) -> None:
        if not over:
            services.in_background(
                attempts.cancel(services, readings)
                if begun
                else attempts.abandon(services, readings, attempt)
            )

    return EventStream.of(
        noted_events(),
        client_disconnected,
        [reading.reader for reading in readings],
        _headers([reading.job for reading in readings]),
    )


def resumable_stream(jobs: Sequence[Job], events: AsyncIterator[bytes]) -> EventSourceResponse:
    """As :func:`cancelling_stream`, but a client that goes away may come back."""
    return EventStream.of(_to_the_end(events), headers=_headers(jobs))


async def _to_the_end(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    except (GenerationFailed, StreamExpired) as error:
        yield _error(error)
    except RESUMABLE_ERRORS as error:
        yield _error(error if isinstance(error, Unavailable) else unavailable(error))
    yield DONE


def _headers(jobs: Sequence[Job]) -> dict[str, str]:
    return {JOBS_HEADER: ",".join(job.request_id for job in jobs)}


def _error(error: MeshError) -> bytes:
    return data({"error": openai_error(error) | {"problem": error.problem()}})
