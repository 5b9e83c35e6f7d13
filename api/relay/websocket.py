"""A node's connection to the relay by a WebSocket."""

import asyncio
import contextlib
import time
from collections import deque

import structlog
from redis.exceptions import RedisError
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.relay.hub import RelayHub, message_count, next_count, size_of
from api.relay.keepalive_ttl import AdaptiveTtl
from api.relay.quotas.connection_slots import ConnectionSlot
from api.server.errors import TransfersFull, TransferTooSlow
from api.server.transfers import Transfer
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

    def __init__(
        self,
        hub: RelayHub,
        websocket: WebSocket,
        node: NodeIncarnation,
        wallet: str,
        slot: ConnectionSlot,
    ) -> None:
        self._hub = hub
        self._websocket = websocket
        self._node = node
        self._node_id = node.node_id
        self._wallet = wallet
        self._slot = slot
        self._unfinished: Transfer | None = None
        """The long frame of which pieces are here."""
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
        except (TransferTooSlow, TransfersFull) as error:
            log.warning("transfer_ended", node_id=self._node_id, reason=error.code)
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
            self._finish_frame()
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
        count = 1
        async with self._hub.blocking_connection() as redis:
            while True:
                deliveries = await self._hub.read_inbox(
                    redis, self._node_id, after, INBOX_WAIT_SECONDS, count=count
                )
                if not deliveries:
                    continue
                self._hub.slots.served(self._slot)
                count = next_count(deliveries)
                with self._hub.transfers.open(self._wallet) as transfer:
                    transfer.add(sum(map(size_of, deliveries)))
                    for delivery in deliveries:
                        after = delivery.after
                        self._unread.append((after, size_of(delivery)))
                        self._unread_bytes += size_of(delivery)
                        await self._send(delivery, transfer)
                del deliveries, delivery  # they are not to wait here for the window
                while self._unread_bytes > relay.WINDOW_BYTES:
                    self._read_on.clear()
                    await self._read_on.wait()

    async def _receive(self) -> Frame:
        """The next frame.

        Raises:
            WireError: not a frame.
            TransferTooSlow: a long frame does not come to its end.
            TransfersFull: other long frames have to be finished first.
        """
        if not self._assembler.size:
            self._finish_frame()
        while True:
            data = await self._message()
            frame = self._assembler.add(data)
            await self._count_unfinished()
            messages = 1 if frame is None else message_count(frame)
            await self._hub.throttle.acquire(self._node_id, messages, len(data))
            if frame is not None:
                return frame
            self._active_at = time.monotonic()
            if self._ttl and time.monotonic() - self._recorded_at > RELAY_KEEPALIVE_INTERVAL:
                await (
                    self._record_keep_alive()
                )  # its keep-alives are behind a long message on a slow link

    async def _count_unfinished(self) -> None:
        """Count the pieces of a long frame, which only a node that is on a route has to send."""
        if not self._assembler.size:
            return
        if self._unfinished is None:
            if not self._slot.serves:
                if not await self._hub.delivered.look_up(self._node_id):
                    log.warning("frame_refused", node_id=self._node_id, reason="not_on_route")
                    raise _ConnectionOver(relay.TRY_AGAIN_LATER)
                self._hub.slots.served(self._slot)
            self._unfinished = self._hub.transfers.open(self._wallet, grace=self._hub.settings.idle)
        self._unfinished.add(self._assembler.size - self._unfinished.size)

    def _finish_frame(self) -> None:
        """The long frame was handled, or will not be."""
        if self._unfinished is not None:
            self._unfinished.close()
            self._unfinished = None

    async def _message(self) -> bytes:
        coming = self._websocket.receive_bytes()
        try:
            data = await (coming if self._unfinished is None else self._unfinished.wait(coming))
        except KeyError:
            raise WireError("A frame is binary.") from None
        if len(data) > relay.MAX_MESSAGE_BYTES:  # the server has other limits than it should
            raise WireError(f"A message has {relay.MAX_MESSAGE_BYTES} bytes at most.")
        return data

    async def _send(self, frame: Frame, transfer: Transfer | None = None) -> None:
        for message in relay.chunks(relay.encode(frame)):
            sending = self._websocket.send_bytes(message)
            await (sending if transfer is None else transfer.wait(sending))
