"""Uvicorn's HTTP/1.1 protocol with the limits of time and size that it lacks: `uvicorn --http
api.server.http_protocol:LimitedHttpProtocol`."""

import httptools

from api.server.client_connection import ClientConnection

MAX_HEAD_BYTES = 2**16
"""Request line and headers together; and what frames a body beside its bytes."""

MAX_FIELDS = 100
"""Header fields of a request, with those behind its body: each is two objects, however short."""

FIELD_OVERHEAD = 100
"""Bytes that a field takes beside those of its name and its value."""

FRAMING_PER_BYTE = 8
"""Bytes that frame a chunk of one byte, and some more."""

MAX_PIPELINED = 2
"""Requests that a client sends before the one before is answered."""


class LimitedHttpProtocol(ClientConnection):
    """Closes connections with too much beside the bodies: Uvicorn keeps headers, and requests that
    wait for their turn, without a limit. It also appends what comes behind a chunked body to the
    headers, where it outranks what a proxy wrote; here that is dropped."""

    _framing = 0
    """Bytes of the current request that are not its body's."""

    _fields = 0
    """Of the current request."""

    _head_complete = False

    def data_received(self, data: bytes) -> None:
        """Bytes have come; those that are not a body's count until their request is complete."""
        self._framing += len(data)
        super().data_received(data)
        if self._framing > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Headers too long.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._fields = 0
        self._head_complete = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field is here, or a trailer field, which is dropped.

        Raises:
            HttpParserError: there are too many.
        """
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise httptools.HttpParserError("Too many header fields.")
        if not self._head_complete:
            super().on_header(name, value)
            return
        self._framing += FIELD_OVERHEAD + len(name) + len(value)
        if self._framing > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("Trailers too long.")

    def on_headers_complete(self) -> None:
        """A request's headers are here.

        Raises:
            HttpParserError: they are too long, or too many requests wait for their turn.
        """
        self._framing = 0
        self._head_complete = True
        head = len(self.url) + sum(
            FIELD_OVERHEAD + len(name) + len(value) for name, value in self.headers
        )
        if head > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("Headers too long.")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("Too many pipelined requests.")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body is here."""
        self._framing = max(0, self._framing - (1 + FRAMING_PER_BYTE) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        self._framing = 0
        super().on_message_complete()
