"""A job as server-sent events."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from api.http import disconnection
from api.http.services import Services
from api.schemas.job_events import end_event, expired_event, interruption_event
from api.server.client_connection import EXTENSION, Connection
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
        async for event in _events(services, job, reader=reader):
            yield event
        over = True

    async def client_disconnected(message: Message) -> None:
        if not over:
            services.in_background(disconnection.cancel(services, job, reader))

    return EventStream.of(events(), client_disconnected, [reader])


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
    """Notes what its readers were sent. Without the library's time limit for each piece, which
    takes longer than all else here: :class:`api.server.client_connection.ClientConnection` ends a
    connection whose client does not read."""

    readers: Sequence[Reader] = ()
    connection: Connection | None = None

    @classmethod
    def of(
        cls,
        events: AsyncIterator[bytes],
        client_disconnected: Callable[[Message], Awaitable[None]] | None = None,
        readers: Sequence[Reader] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """
        Args:
            events: Bytes of whole events.
            client_disconnected: Called if the client goes away before the end.
            readers: Of the jobs, each of whom has taken what stands in the events so far.
            headers: Of the answer.
        """
        stream = cls(
            events,
            ping=PING_SECONDS,
            client_close_handler_callable=client_disconnected,
            headers=headers,
        )
        stream.readers = readers
        return stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application. The connection is the server's word, where it is ours."""
        self.connection = scope.get("extensions", {}).get(EXTENSION)
        await super().__call__(scope, receive, send)

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        connection = self.connection
        if connection is not None and connection.is_closing:
            return
        for reader in self.readers:
            reader.lags = connection is not None and connection.is_backed_up
        await send(message)
        if connection is None or not connection.is_closing:
            for reader in self.readers:
                reader.sent, reader.lags = reader.taken, False
