"""A client's connection: one whose client takes nothing in is closed, not kept for ever."""

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

UNREAD_SECONDS = 30.0
"""Seconds that a client has to read what waits for it. A proxy that stops for longer is broken."""

_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it


class ClientConnection(HttpToolsProtocol):
    """Uvicorn's HTTP connection (``--http api.http.connection:ClientConnection``) with a time limit
    for clients that do not read.

    Uvicorn waits without limit for such a client: while its answer is sent, and when the connection
    is closed. The kernel ends a connection on which nothing is acknowledged or taken in any more.
    One whose client takes in a few bytes now and then is ended here, if the buffer does not empty
    in time.
    """

    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if _USER_TIMEOUT is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            milliseconds = round(1000 * UNREAD_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, milliseconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_timer()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
