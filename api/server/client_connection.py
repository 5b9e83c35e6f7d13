"""A client's connection, which is closed if its client neither sends nor takes in what is due."""

import asyncio
import socket
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

UNREAD_SECONDS = 30.0
"""Seconds that a client has to take in what waits for it."""

HEAD_SECONDS = 30.0
"""Seconds that a client has to send a request's head, from the connection or its first byte on."""

EXTENSION = "far_mesh.connection"
"""Of an ASGI scope: the :class:`Connection` that the request came by."""

_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it


class Connection(Protocol):
    """What an answer may want to know of the connection that it goes out by."""

    @property
    def is_closing(self) -> bool:
        """Whether nothing that is sent now goes out: the client has closed its side."""
        ...

    @property
    def is_backed_up(self) -> bool:
        """Whether what is sent waits until the client takes in what was sent before."""
        ...


class ClientConnection(HttpToolsProtocol):
    """Uvicorn's HTTP connection with the time limits that it lacks.

    Uvicorn waits without limit for a client that does not read: while its answer is sent, and when
    the connection is closed. Here the kernel ends a connection on which nothing is taken in any
    more. One whose client takes in a few bytes now and then is ended by a timer, if the buffer does
    not empty in time. Uvicorn also waits without limit for the first request, and for the rest of
    a head that was begun.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = Deadline(HEAD_SECONDS)
        self._reading = Deadline(UNREAD_SECONDS)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if _USER_TIMEOUT is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            milliseconds = round(1000 * UNREAD_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, milliseconds)
        self._head.start(transport)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: cast(dict[object, object], self)}

    @property
    def is_closing(self) -> bool:
        return bool(self.transport.is_closing())

    @property
    def is_backed_up(self) -> bool:
        return self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._head.start(self.transport)
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._head.stop()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.start(self.transport)

    def resume_writing(self) -> None:
        self._reading.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.stop()
        self._reading.stop()
        super().connection_lost(exc)


class Deadline:
    """Ends a connection unless it is stopped within so many seconds from its start."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """Begin to count, unless that was done before."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, transport.abort)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
