"""A node's connection to the relay by a WebSocket."""

import asyncio
import contextlib
import time
from collections import deque

import structlog
from redis.exceptions import RedisError
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.relay.hub import RelayHub
from api.relay.keepalive_ttl import AdaptiveTtl
from market.nodes.node import NodeIncarnation
from mesh import relay
from mesh.errors import WireError
from mesh.keepalive import RELAY_KEEPALIVE_INTERVAL
from mesh.relay import (
    Assembler,
    Frame,
    Hello,
    KeepAlive,
    KeepAliveAck,
    Push,
    cursor_order,
)

INBOX_WAIT_SECONDS = 4.0
"""Seconds that one read of an inbox waits for work; below Redis' time-out."""

OWNER_CHECK_SECONDS = 2.0
"""Seconds between checks whether a connection is still the node's, where no keep-alive has found
out."""

CLOSE_TIMEOUT = 1.0
"""Seconds that a close frame waits for a node that reads nothing."""

log = structlog.get_logger()


class _ConnectionOver(Exception):
    """The connection ends, with a close code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class NodeWebSocket:
    """One accepted WebSocket of a node, from its hello to its end. Deliveries go out until
    ``WINDOW_BYTES`` of them have not been read by the node."""

    def __init__(self, hub: RelayHub, websocket: WebSocket, node: NodeIncarnation) -> None:
        self._hub = hub
        self._websocket = websocket
        self._node = node
        self._node_id = node.node_id
        self._adaptive_ttl = AdaptiveTtl()
        self._assembler = Assembler()
        self._connection = ""
        self._keep_alive = KeepAlive(0, 0, "")
        self._ttl = 0.0
        self._recorded_at = 0.0
        self._active_at = time.monotonic()
        self._unread: deque[tuple[str, int]] = deque()
        self._unread_bytes = 0
        self._read_on = asyncio.Event()

    async def serve(self) -> None:
        """Returns when the connection is closed, by either side."""
        code = relay.TRY_AGAIN_LATER
        try:
            code = await self._serve()
        except RedisError as error:
            log.warning("relay_outage", error=type(error).__name__)
        except WireError as error:
            log.warning("frame_refused", node_id=self._node_id, reason=error.detail)
            code = relay.PROTOCOL_ERROR
        except _ConnectionOver as over:
            code = over.code
        except WebSocketDisconnect:
            return
        # RuntimeError, WebSocketDisconnect: it was closed already.
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._websocket.close(code)

    async def _serve(self) -> int:
        hello = await self._receive_hello()
        welcome = await self._hub.hello(self._node, hello)
        if welcome is None:
            return relay.SUPERSEDED
        self._connection = welcome.connection
        await self._send(welcome)
        self._active_at = time.monotonic()
        tasks = {
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._receive_frames(hello.session)),
            asyncio.create_task(self._deliver_inbox(welcome.after)),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return relay.TRY_AGAIN_LATER

    async def _receive_hello(self) -> Hello:
        try:
            async with asyncio.timeout(self._hub.settings.idle):
                frame = relay.decode(await self._message())
        except TimeoutError:
            raise _ConnectionOver(relay.TRY_AGAIN_LATER) from None
        if not isinstance(frame, Hello):
            raise WireError("The first frame says hello.")
        return frame

    async def _watch(self) -> None:
        """End the connection when it is half open, or not the node's any more, whatever else comes
        or waits on it."""
        while (left := self._active_at + self._hub.settings.idle - time.monotonic()) > 0:
            await asyncio.sleep(min(left, OWNER_CHECK_SECONDS))
            if time.monotonic() - self._recorded_at < OWNER_CHECK_SECONDS:
                continue
            if not await self._hub.owns(self._node_id, self._connection):
                raise _ConnectionOver(relay.SUPERSEDED)
        raise _ConnectionOver(relay.TRY_AGAIN_LATER)

    async def _receive_frames(self, session: str) -> None:
        try:
            while True:
                frame = await self._receive()
                if isinstance(frame, Push):
                    await self._send(await self._hub.forward(self._node_id, session, frame))
                elif isinstance(frame, KeepAlive):
                    await self._take_keep_alive(frame)
                else:
                    raise WireError(f"A node does not send {type(frame).__name__}.")
        except WebSocketDisconnect as gone:
            if gone.code == relay.GOODBYE:
                await self._hub.goodbye(self._node_id, self._connection)
            raise

    async def _take_keep_alive(self, frame: KeepAlive) -> None:
        self._active_at = time.monotonic()
        self._ttl = self._adaptive_ttl.observe(self._active_at)
        self._keep_alive = frame
        await self._record_keep_alive()
        while (
            self._unread
            and frame.after
            and cursor_order(self._unread[0][0]) <= cursor_order(frame.after)
        ):
            self._unread_bytes -= self._unread.popleft()[1]
        self._read_on.set()
        await self._send(KeepAliveAck(frame.number))

    async def _record_keep_alive(self) -> None:
        """Record that the node lives, for as long as its newest keep-alive holds."""
        self._recorded_at = time.monotonic()
        if not await self._hub.keep_alive(
            self._node_id, self._connection, self._keep_alive, self._ttl
        ):
            raise _ConnectionOver(relay.SUPERSEDED)

    async def _deliver_inbox(self, after: str) -> None:
        async with self._hub.blocking_connection() as redis:
            while True:
                for delivery in await self._hub.read_inbox(
                    redis, self._node_id, after, INBOX_WAIT_SECONDS
                ):
                    after = delivery.after
                    size = sum(len(entry.header) + len(entry.tensor) for entry in delivery.entries)
                    self._unread.append((after, size))
                    self._unread_bytes += size
                    await self._send(delivery)
                    while self._unread_bytes > relay.WINDOW_BYTES:
                        self._read_on.clear()
                        await self._read_on.wait()

    async def _receive(self) -> Frame:
        """The next frame.

        Raises:
            WireError: not a frame.
        """
        while True:
            data = await self._message()
            frame = self._assembler.add(data)
            messages = len(frame.messages) if isinstance(frame, Push) else 1
            await self._hub.throttle.acquire(self._node_id, messages, len(data))
            if frame is not None:
                return frame
            self._active_at = time.monotonic()
            if self._ttl and time.monotonic() - self._recorded_at > RELAY_KEEPALIVE_INTERVAL:
                await (
                    self._record_keep_alive()
                )  # its keep-alives are behind a long message on a slow link

    async def _message(self) -> bytes:
        try:
            data = await self._websocket.receive_bytes()
        except KeyError:
            raise WireError("A frame is binary.") from None
        if len(data) > relay.MAX_MESSAGE_BYTES:  # the server has other limits than it should
            raise WireError(f"A message has {relay.MAX_MESSAGE_BYTES} bytes at most.")
        return data

    async def _send(self, frame: Frame) -> None:
        for message in relay.chunks(relay.encode(frame)):
            await self._websocket.send_bytes(message)
