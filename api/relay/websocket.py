"""The two ways between node and relay: a WebSocket, and long polls where WebSockets are blocked."""

import asyncio
import contextlib
import time
from collections import deque

import structlog
from redis.exceptions import RedisError
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.relay.hub import RelayHub
from api.relay.keepalive_ttl import PulseClock
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

INBOX_WAIT = 4.0
"""Seconds between looks for a node whose connection is quiet; below Redis' time-out."""

OWNER_LOOK = 2.0
"""Seconds between looks whether a connection without pulses, which find out, is still the
node's."""

CLOSE_WAIT = 1.0
"""Seconds that a node which takes nothing in gets to hear why its connection ends."""

log = structlog.get_logger()


class _Over(Exception):
    """The connection ends, with a close code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class NodeWebSocket:
    """One accepted WebSocket of a node, from its hello to its end."""

    def __init__(self, desk: RelayHub, websocket: WebSocket, node: NodeIncarnation) -> None:
        self._desk = desk
        self._websocket = websocket
        self._node = node
        self._node_id = node.node_id
        self._clock = PulseClock()
        self._assembler = Assembler()
        self._connection = ""
        self._pulse = KeepAlive(0, 0, "")
        self._ttl = 0.0
        self._told_at = 0.0
        self._alive_at = time.monotonic()
        self._given: deque[tuple[str, int]] = deque()
        self._given_bytes = 0
        self._taken = asyncio.Event()

    async def serve(self) -> None:
        """Returns when the connection is closed, by either side."""
        code = relay.TRY_AGAIN
        try:
            code = await self._serve()
        except RedisError as error:
            log.warning("relay_outage", error=type(error).__name__)
        except WireError as error:
            log.warning("frame_refused", node_id=self._node_id, reason=error.detail)
            code = relay.BROKEN
        except _Over as over:
            code = over.code
        except WebSocketDisconnect:
            return
        # RuntimeError, WebSocketDisconnect: it was closed already.
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(CLOSE_WAIT):
                await self._websocket.close(code)

    async def _serve(self) -> int:
        hello = await self._first()
        welcome = await self._desk.greet(self._node, hello)
        if welcome is None:
            return relay.SUPERSEDED
        self._connection = welcome.connection
        await self._send(welcome)
        self._alive_at = time.monotonic()
        tasks = {
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._take_in(hello.session)),
            asyncio.create_task(self._give_out(welcome.after)),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return relay.TRY_AGAIN

    async def _first(self) -> Hello:
        try:
            async with asyncio.timeout(self._desk.settings.idle):
                frame = relay.decode(await self._message())
        except TimeoutError:
            raise _Over(relay.TRY_AGAIN) from None
        if not isinstance(frame, Hello):
            raise WireError("The first frame says hello.")
        return frame

    async def _watch(self) -> None:
        """End the connection when it is half open, or not the node's any more, whatever else comes
        or waits on it."""
        while (left := self._alive_at + self._desk.settings.idle - time.monotonic()) > 0:
            await asyncio.sleep(min(left, OWNER_LOOK))
            if time.monotonic() - self._told_at < OWNER_LOOK:
                continue
            if not await self._desk.owns(self._node_id, self._connection):
                raise _Over(relay.SUPERSEDED)
        raise _Over(relay.TRY_AGAIN)

    async def _take_in(self, session: str) -> None:
        try:
            while True:
                frame = await self._receive()
                if isinstance(frame, Push):
                    await self._send(await self._desk.forward(self._node_id, session, frame))
                elif isinstance(frame, KeepAlive):
                    await self._take_pulse(frame)
                else:
                    raise WireError(f"A node does not send {type(frame).__name__}.")
        except WebSocketDisconnect as gone:
            if gone.code == relay.GOODBYE:
                await self._desk.farewell(self._node_id, self._connection)
            raise

    async def _take_pulse(self, pulse: KeepAlive) -> None:
        self._alive_at = time.monotonic()
        self._ttl = self._clock.heard(self._alive_at)
        self._pulse = pulse
        await self._tell()
        while (
            self._given
            and pulse.after
            and cursor_order(self._given[0][0]) <= cursor_order(pulse.after)
        ):
            self._given_bytes -= self._given.popleft()[1]
        self._taken.set()
        await self._send(KeepAliveAck(pulse.number))

    async def _tell(self) -> None:
        """Let all know that the node lives."""
        self._told_at = time.monotonic()
        if not await self._desk.pulse(self._node_id, self._connection, self._pulse, self._ttl):
            raise _Over(relay.SUPERSEDED)

    async def _give_out(self, after: str) -> None:
        async with self._desk.reading() as line:
            while True:
                for part in await self._desk.read(line, self._node_id, after, INBOX_WAIT):
                    after = part.after
                    size = sum(len(entry.header) + len(entry.tensor) for entry in part.entries)
                    self._given.append((after, size))
                    self._given_bytes += size
                    await self._send(part)
                    while self._given_bytes > relay.WINDOW_BYTES:
                        self._taken.clear()
                        await self._taken.wait()

    async def _receive(self) -> Frame:
        """The next frame.

        Raises:
            WireError: not a frame.
        """
        while True:
            data = await self._message()
            frame = self._assembler.add(data)
            messages = len(frame.sent) if isinstance(frame, Push) else 1
            await self._desk.pace.take(self._node_id, messages, len(data))
            if frame is not None:
                return frame
            self._alive_at = time.monotonic()
            if self._ttl and time.monotonic() - self._told_at > RELAY_KEEPALIVE_INTERVAL:
                await self._tell()  # its pulses are behind a long message on a slow link

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
