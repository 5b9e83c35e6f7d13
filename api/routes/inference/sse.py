"""A job as server-sent events."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from sse_starlette import EventSourceResponse
from starlette.types import Message, Send

from api.http import disconnection
from api.http.services import Services
from api.schemas.job_events import end_event, expired_event, interruption_event
from market.errors import Unavailable
from market.jobs.errors import StreamExpired
from market.jobs.reading.reader_errors import RESUMABLE_ERRORS
from market.jobs.stop import Reader
from market.jobs.tables import Job
from market.outages import unavailable
from mesh import token_stream

PING_SECONDS = 15
"""Seconds between comments on a silent stream, so that proxies keep it open."""

EVENT_STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
"""A route's content, for its documentation."""


def job_stream(
    services: Services, job: Job, after: str = token_stream.START
) -> EventSourceResponse:
    """The job's events after an entry. A client that disconnects may come back for the rest."""
    return EventStream.of(_events(services, job, after))


def cancelling_stream(services: Services, job: Job) -> EventSourceResponse:
    """The job's events; a client that disconnects before the last one cancels the job.

    Only a client that disconnects counts: a stream that ends otherwise (this replica stops, Redis
    cannot be reached) can be resumed at another replica.
    """
    over, reader = False, Reader()

    async def events() -> AsyncIterator[bytes]:
        nonlocal over
        async for event in noting_sent(_events(services, job, reader=reader), [reader]):
            yield event
        over = True

    async def client_disconnected(message: Message) -> None:
        if not over:
            services.in_background(disconnection.cancel(services, job, reader))

    return EventStream.of(events(), client_disconnected)


async def noting_sent(
    events: AsyncIterator[bytes], readers: Sequence[Reader]
) -> AsyncIterator[bytes]:
    """The events, each of which has gone out to the client when the next one is asked for."""
    async for event in events:
        for reader in readers:
            reader.lags = True
        yield event
        for reader in readers:
            reader.sent, reader.lags = reader.taken, False


async def _events(
    services: Services,
    job: Job,
    after: str = token_stream.START,
    *,
    reader: Reader | None = None,
) -> AsyncIterator[bytes]:
    """A generation as server-sent events, those that have come meanwhile in one piece."""
    request_id = job.request_id
    try:
        async for piece in services.tokens.follow(
            request_id, after, owner=job.user_wallet, reader=reader
        ):
            yield piece if isinstance(piece, bytes) else end_event(request_id, piece)
    except StreamExpired as error:
        yield expired_event(error)
    except RESUMABLE_ERRORS as error:
        yield interruption_event(error if isinstance(error, Unavailable) else unavailable(error))


class EventStream(EventSourceResponse):
    """Without the library's time limit for each piece, which takes longer than all else here:
    :class:`api.server.client_connection.ClientConnection` ends a connection whose client does not
    read."""

    @classmethod
    def of(
        cls,
        events: AsyncIterator[bytes],
        client_disconnected: Callable[[Message], Awaitable[None]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """
        Args:
            events: Bytes of whole events.
            client_disconnected: Called if the client goes away before the end.
            headers: Of the answer.
        """
        return cls(
            events,
            ping=PING_SECONDS,
            client_close_handler_callable=client_disconnected,
            headers=headers,
        )

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        await send(message)
