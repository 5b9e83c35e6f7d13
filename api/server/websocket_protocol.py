"""Uvicorn's WebSocket protocol with limits that it lacks: `uvicorn --ws
api.server.websocket_protocol:LimitedWebSocketProtocol`."""

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

MAX_FRAGMENTS = 64
"""Of one message: each is an object of its own until the last has come, however short it is."""

MAX_QUEUED = 1024
"""Messages that one read of the socket may bring."""

MAX_UNSENT_BYTES = 2**16
"""In the write buffer when another ping has to be answered."""

CHECK_SECONDS = 15.0

LEAST_RATE = 2**12
"""Bytes a second that a client takes in while more are waiting for it."""


class LimitedWebSocketProtocol(WebSocketsSansIOProtocol):
    """Aborts connections that send messages in crumbs, ask for answers without reading them, or
    stand still with a full write buffer: TCP alone waits for a reader for ever."""

    _check: asyncio.TimerHandle | None = None
    _unsent = 0

    def handle_cont(self, event: Frame) -> None:
        """Another fragment of a message has come."""
        super().handle_cont(event)
        if len(self.frames) > MAX_FRAGMENTS:
            self.frames = []
            self.transport.abort()

    def handle_ping(self) -> None:
        """Answer a ping."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self.transport.abort()

    def send_receive_event_to_app(self) -> None:
        """A message is complete."""
        if self.queue.qsize() < MAX_QUEUED:
            super().send_receive_event_to_app()
        else:
            self.frames = []
            self.transport.abort()

    def pause_writing(self) -> None:
        """The write buffer is full."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The write buffer is all but empty."""
        self._unwatch()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._unwatch()
        self._unsent = self.transport.get_write_buffer_size()
        self._check = self.loop.call_later(CHECK_SECONDS, self._look)

    def _unwatch(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def _look(self) -> None:
        if self.transport.get_write_buffer_size() > self._unsent - CHECK_SECONDS * LEAST_RATE:
            self.transport.abort()
        else:
            self._watch()
