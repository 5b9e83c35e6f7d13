"""The transport over the relay, which resends, keeps alive and reconnects.

One connection, which the node opens. Nothing waits for an answer: outputs go up as they come, work
comes down as it comes, and keep-alives go between them. After a reconnect each side sends again
what the other has not acknowledged (see :mod:`mesh.relay`): a lost connection costs time, and no
step.
"""

import contextlib
import math
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from mesh import relay, wire
from mesh.errors import WireError
from mesh.keepalive import RELAY_KEEPALIVE_INTERVAL
from mesh.relay import (
    Frame,
    Hello,
    InboxDelivery,
    KeepAlive,
    KeepAliveAck,
    OutgoingMessage,
    Push,
    PushAck,
    Refusal,
)
from mesh.wire import Message, Steps, StopEpoch
from mesh.wire.limits import MAX_TENSOR_BYTES
from node_runner.outputs import EngineOutput, NodeMessage
from node_runner.transport.interface import RoundTripMeter, TransportUnreachable
from node_runner.transport.polling_connection import PollingConnection
from node_runner.transport.relay_connection import (
    ConnectionLost,
    ConnectionSuperseded,
    RelayConnection,
    WebSocketBlocked,
)
from node_runner.transport.websocket_connection import WebSocketConnection, open_websocket

START_TIMEOUT = 20.0
"""Seconds that the first connection may take."""

RECONNECT_TIMEOUT = 1.0
"""Seconds that an exchange waits for a lost connection to come back, before it says so."""

SILENCE_TIMEOUT = 3.0
"""Seconds without any answer, twelve keep-alives, after which a connection counts as half open."""

STABLE_SECONDS = 1.0
"""Seconds after which a connection was a good one: the relay did not end it for what it was sent
first, which it will be sent again."""

FIRST_DELAY, MAX_DELAY = 0.1, 10.0
"""Seconds between tries to connect, doubled each time, by the half more or less: so that a relay
that comes back does not meet all its nodes at once."""

SUPERSEDED_DELAY = 30.0
"""Seconds until a node connects again after another process has connected with its token."""

LOSSES_BEFORE_POLLING = 2
"""WebSockets that time out or break while they open, until long polls are tried: some firewalls
swallow them without a word. Where one is refused outright, they are tried at once."""

WEBSOCKET_RETRY_DELAY = 60.0
"""Seconds of long polls until a WebSocket is tried again."""

log = structlog.get_logger()


class RelayTransport:
    """Exchanges messages over the relay. One thread keeps the connection open, one sends
    keep-alives, and one watches that somebody answers."""

    def __init__(
        self,
        url: str,
        token: str,
        free_kv: Callable[[], int],
        *,
        websocket_retry: float = WEBSOCKET_RETRY_DELAY,
    ) -> None:
        """
        Args:
            url: Of the platform.
            token: Of this node, from its registration.
            free_kv: Gives the positions that are free in the KV cache.
            websocket_retry: Seconds of long polls until a WebSocket is tried again.

        Raises:
            TransportUnreachable: the relay cannot be reached, or refuses.
        """
        self._url = url
        self._token = token
        self._free_kv = free_kv
        self._websocket_retry = websocket_retry
        self._session = secrets.token_hex(8)
        self._round_trip = RoundTripMeter()
        self._closing = threading.Event()
        self._closed = threading.Event()
        self._sending = threading.Lock()
        """Pushes go out in order: held from numbering to sending."""
        guard = threading.RLock()
        """Guards the conditions and fields below."""
        self._changed = threading.Condition(guard)
        """There is work, or another connection."""
        self._accepted = threading.Condition(guard)
        """The outbox is shorter."""
        self._connection: RelayConnection | None = None
        self._reason = "no connection yet"
        self._outbox: deque[Push] = deque()
        self._pushed = 0
        self._inbox: list[relay.InboxEntry] = []
        self._inbox_bytes = 0
        self._stopped_epochs: list[Message] = []
        self._after = self._taken = ""
        self._last_frame_at = 0.0
        self._last_keepalive: tuple[int, float] = (0, 0.0)
        self._threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self._stay_connected, self._send_keepalives)
        ]
        self._watchdog = threading.Thread(target=self._watch, daemon=True)
        for thread in (*self._threads, self._watchdog):
            thread.start()
        if not self._wait_for_connection(START_TIMEOUT):
            self.close()
            raise TransportUnreachable(f"The relay at {url} cannot be reached: {self._reason}.")

    @property
    def hop_ms(self) -> float:
        return self._round_trip.milliseconds

    @property
    def connection_kind(self) -> str:
        """``websocket`` or ``long poll``, as the relay is connected now; else an empty text."""
        connection = self._connection
        return "" if connection is None else connection.kind

    def exchange(self, outputs: Sequence[EngineOutput], *, wait: float) -> list[Message]:
        if not self._wait_for_connection(RECONNECT_TIMEOUT):
            raise TransportUnreachable(f"The relay cannot be reached: {self._reason}.")
        if outputs:
            self._push(outputs)
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._inbox or self._stopped_epochs, timeout=wait)
            entries, self._inbox, self._inbox_bytes = self._inbox, [], 0
            stopped, self._stopped_epochs = self._stopped_epochs, []
            self._taken = self._after
            self._changed.notify_all()
        return [*stopped, *_decoded(entries)]

    def close(self) -> None:
        if self._closed.is_set():
            return
        with self._accepted:  # what was pushed last has to get there
            self._accepted.wait_for(lambda: not self._outbox, timeout=RECONNECT_TIMEOUT)
        self._closing.set()
        connection = self._connection
        if connection is not None:
            connection.say_goodbye()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._closed.set()
        self._watchdog.join()

    def _wait_for_connection(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._connection is not None, timeout=seconds)

    def _push(self, outputs: Sequence[EngineOutput]) -> None:
        # Steps first: the next node works while Redis takes in what readers want.
        forwarded = [output for output in outputs if isinstance(output, NodeMessage)]
        reports = [output for output in outputs if not isinstance(output, NodeMessage)]
        outgoing = [_outgoing(each.to, each.message) for each in forwarded if self._fits(each)]
        outgoing += [_outgoing("", report) for report in reports]
        with self._sending:
            with self._changed:
                pushes = []
                for batch in relay.batches(outgoing):
                    self._pushed += 1
                    pushes.append(Push(self._pushed, batch))
                self._outbox += pushes
                connection = self._connection
            if connection is not None:
                self._send_all(connection, pushes)

    def _fits(self, output: NodeMessage) -> bool:
        """Whether the relay takes a message; if not, its generations end here."""
        message = output.message
        if not isinstance(message, Steps) or len(message.data) <= MAX_TENSOR_BYTES:
            return True
        log.error("message_too_large", bytes=len(message.data), most=MAX_TENSOR_BYTES)
        with self._changed:
            self._stopped_epochs += [
                StopEpoch(step.request_id, step.epoch) for step in message.steps
            ]
        return False

    def _send_all(self, connection: RelayConnection, pushes: Sequence[Push]) -> None:
        """Send in order; what cannot be sent stays in the outbox."""
        try:
            for push in pushes:
                connection.send(relay.encode(push))
        except ConnectionLost as error:
            self._drop(connection, error)

    def _stay_connected(self) -> None:
        """Connect, listen, and connect again, until closed."""
        delay, losses = FIRST_DELAY, 0
        while not self._closing.is_set():
            pause = delay * random.uniform(0.5, 1.5)
            connected_at = math.inf
            try:
                connection = self._connect(losses)
                losses, connected_at = 0, time.monotonic()
                self._serve(connection)
            except ConnectionSuperseded as error:
                self._set_reason(error)
                pause = SUPERSEDED_DELAY * random.uniform(0.5, 1.5)
            except ConnectionLost as error:
                self._set_reason(error)
                losses += 1
                delay = min(2 * delay, MAX_DELAY)
                if time.monotonic() - connected_at > STABLE_SECONDS:
                    delay, pause = FIRST_DELAY, FIRST_DELAY * random.uniform(0.5, 1.5)
            if not self._closing.is_set():
                log.warning("relay_unreachable", reason=self._reason, retry_in=round(pause, 2))
                self._closing.wait(pause)

    def _connect(self, losses: int) -> RelayConnection:
        hello = Hello(relay.VERSION, self._session, self._after)
        try:
            return WebSocketConnection(self._url, self._token, hello, self._on_frame)
        except ConnectionLost as error:
            if not isinstance(error, WebSocketBlocked) and losses < LOSSES_BEFORE_POLLING:
                raise
            log.info("websocket_blocked", reason=str(error))
        return PollingConnection(self._url, self._token, hello, self._on_frame, self._cursor)

    def _serve(self, connection: RelayConnection) -> None:
        """Use a connection until it is lost.

        Raises:
            ConnectionLost: then.
        """
        self._open(connection)
        if isinstance(connection, PollingConnection):
            threading.Thread(target=self._retry_websocket, args=[connection], daemon=True).start()
        try:
            connection.listen()
        except ConnectionLost as error:
            self._drop(connection, error)
            raise

    def _open(self, connection: RelayConnection) -> None:
        """Send again what the relay does not have, and let all threads use the connection."""
        welcome = connection.welcome
        with self._sending:
            with self._changed:
                self._after = self._after or welcome.after
                self._taken = self._taken or welcome.after
                self._accept(welcome.number)
                waiting = list(self._outbox)
                self._last_frame_at = time.monotonic()
                self._connection = connection
                self._changed.notify_all()
            log.info("relay_connected", connection=connection.kind, resent=len(waiting))
            self._send_all(connection, waiting)

    def _retry_websocket(self, polling: PollingConnection) -> None:
        """End the long polls, which go on meanwhile, as soon as a WebSocket gets through."""
        while not self._closing.wait(self._websocket_retry) and self._connection is polling:
            with contextlib.suppress(ConnectionLost):
                open_websocket(self._url, self._token).close(relay.GOING_AWAY)
                polling.abort()

    def _drop(self, connection: RelayConnection, error: ConnectionLost) -> None:
        with self._changed:
            if self._connection is connection:
                self._connection = None
        self._set_reason(error)
        connection.abort()

    def _set_reason(self, error: ConnectionLost) -> None:
        self._reason = str(error).rstrip(".")

    def _cursor(self) -> str:
        """The inbox entry to read on from, once the engine has taken in what came before."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._inbox_bytes < relay.WINDOW_BYTES or self._closing.is_set()
            )
            return self._after

    def _on_frame(self, frame: Frame) -> None:
        with self._changed:
            self._last_frame_at = time.monotonic()
            if isinstance(frame, InboxDelivery):
                self._take_in(frame)
            elif isinstance(frame, PushAck):
                self._accept(frame.number)
                if frame.refused:
                    self._stopped_epochs += map(_stop_epoch, frame.refused)
                    self._changed.notify_all()
            elif isinstance(frame, KeepAliveAck) and frame.number == self._last_keepalive[0]:
                self._round_trip.observe(time.perf_counter() - self._last_keepalive[1])

    def _take_in(self, frame: InboxDelivery) -> None:
        # A poll that was under way when its connection was lost may bring things twice.
        if relay.cursor_order(frame.after) <= relay.cursor_order(self._after):
            return
        self._inbox += frame.entries
        self._inbox_bytes += sum(len(entry.header) + len(entry.tensor) for entry in frame.entries)
        self._after = frame.after
        self._changed.notify_all()

    def _accept(self, number: int) -> None:
        while self._outbox and self._outbox[0].number <= number:
            self._outbox.popleft()
        self._accepted.notify_all()

    def _send_keepalives(self) -> None:
        """Say that this process runs, even while it computes for long, and how much KV is free."""
        number = 0
        while not self._closing.wait(RELAY_KEEPALIVE_INTERVAL):
            connection = self._connection
            if connection is None:
                continue
            number += 1
            self._last_keepalive = (number, time.perf_counter())
            frame = KeepAlive(number, max(0, self._free_kv()), self._taken)
            try:
                connection.send(relay.encode(frame))
            except ConnectionLost as error:
                self._drop(connection, error)

    def _watch(self) -> None:
        """Drop a connection on which nobody answers. The other threads may be stuck in it: a
        keep-alive, too, waits behind a large push that nobody takes."""
        while not self._closed.wait(RELAY_KEEPALIVE_INTERVAL):
            connection = self._connection
            if connection is not None and time.monotonic() - self._last_frame_at > SILENCE_TIMEOUT:
                self._drop(connection, ConnectionLost("The relay is silent."))


def _outgoing(to: str, message: Message) -> OutgoingMessage:
    fields = wire.encode(message)
    return OutgoingMessage(to, bytes(fields[wire.HEADER]), bytes(fields.get(wire.TENSOR, b"")))


def _stop_epoch(refusal: Refusal) -> Message:
    if refusal.code != "epoch_over":
        log.warning("push_refused", code=refusal.code, request_id=refusal.request_id)
    return StopEpoch(refusal.request_id, refusal.epoch)


def _decoded(entries: Sequence[relay.InboxEntry]) -> list[Message]:
    messages = []
    for entry in entries:
        try:
            messages.append(wire.decode({wire.HEADER: entry.header, wire.TENSOR: entry.tensor}))
        except WireError as error:
            log.warning("message_undecodable", code=error.code, reason=error.detail)
    return messages
