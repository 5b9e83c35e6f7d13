"""The two ways to the relay: a WebSocket, and long polls where WebSockets are blocked."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException
from websockets.sync.client import ClientConnection, connect

from mesh import relay
from mesh.errors import WireError
from mesh.relay import Assembler, Displaced, Frame, Hello, Poll, Welcome

OPEN_LIMIT = 5.0
"""Seconds for name, TCP, TLS and greeting together: three round trips on a bad link, and a packet
sent again."""

ANSWER_LIMIT = 5.0
"""Seconds of silence in one exchange over HTTP."""

Hear = Callable[[Frame], None]


class Lost(Exception):
    """The way to the relay is gone, or never was there; the message says why."""


class Blocked(Lost):
    """Something answered, but not as a relay that takes WebSockets does."""


class Elsewhere(Lost):
    """Another process has connected as this node."""


class Carrier(Protocol):
    """An open way. Methods may be called from several threads."""

    name: str
    welcome: Welcome

    def send(self, frame: bytes) -> None:
        """
        Raises:
            Lost: it may have arrived.
        """
        ...

    def listen(self) -> None:
        """Hand over what comes, until it is closed.

        Raises:
            Lost: the end; it never returns otherwise.
        """
        ...

    def abandon(self) -> None:
        """End it at once, also if others are sending. Never raises."""
        ...

    def farewell(self) -> None:
        """End it in order: the node goes. Never raises."""
        ...


def open_websocket(url: str, token: str) -> ClientConnection:
    """A WebSocket to the relay, on which nothing has been said yet. Proxies and certificates are
    the environment's.

    Raises:
        Lost: the relay cannot be reached.
        Blocked: it, or a proxy before it, refuses.
    """
    try:
        return connect(
            "ws" + url.rstrip("/").removeprefix("http") + relay.PATH,
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,  # hidden states do not get shorter
            open_timeout=OPEN_LIMIT,
            close_timeout=1,
            ping_interval=None,  # pulses do that
            max_size=relay.MAX_MESSAGE_BYTES,
            max_queue=None,  # the relay sends no more than its window
        )
    except InvalidHandshake as error:
        raise Blocked(f"{error}") from error
    except (OSError, WebSocketException, ImportError, EOFError) as error:
        raise Lost(f"{type(error).__name__}: {error}") from error


class WebSocketCarrier:
    """Both directions at once.

    Args:
        url: Of the platform.
        token: The node's.
        hello: What to begin with.
        hear: Called with each frame, by the thread that listens.

    Raises:
        Lost: the relay cannot be reached.
        Blocked: it, or a proxy before it, refuses.
    """

    name = "websocket"

    def __init__(self, url: str, token: str, hello: Hello, hear: Hear) -> None:
        self._hear = hear
        self._assembler = Assembler()
        self._connection = open_websocket(url, token)
        try:
            self._connection.send(relay.encode(hello))
            frame = relay.decode(_binary(self._connection.recv(timeout=OPEN_LIMIT)))
        except (OSError, WebSocketException, WireError) as error:
            self.abandon()
            raise Lost(f"No welcome ({type(error).__name__}).") from error
        if not isinstance(frame, Welcome):
            self.abandon()
            raise Lost("No welcome.")
        self.welcome = frame

    def send(self, frame: bytes) -> None:
        try:
            for message in relay.chunks(frame):
                self._connection.send(message)
        except (OSError, WebSocketException) as error:
            raise Lost(f"The connection is lost ({type(error).__name__}).") from error

    def listen(self) -> None:
        try:
            while True:
                frame = self._assembler.add(_binary(self._connection.recv()))
                if frame is not None:
                    self._hear(frame)
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd is not None else None
            if code == relay.DISPLACED:
                raise Elsewhere("Another process has connected as this node.") from error
            raise Lost(f"The connection was closed (code {code}).") from error
        except (OSError, WebSocketException, WireError) as error:
            raise Lost(f"The connection is lost ({type(error).__name__}).") from error

    def abandon(self) -> None:
        # Not close(): it would wait for whoever is sending into the void.
        with contextlib.suppress(OSError):  # it is closed already
            self._connection.socket.shutdown(socket.SHUT_RDWR)

    def farewell(self) -> None:
        self._connection.close(relay.FAREWELL)


class PollingCarrier:
    """Requests: one that waits for work, and others beside it that carry results.

    Args:
        url: Of the platform.
        token: The node's.
        hello: What to begin with.
        hear: Called with each frame, by whoever listens or sends.
        cursor: Tells where in the inbox to go on, once there is room for more.

    Raises:
        Lost: the relay cannot be reached, or refuses.
    """

    name = "long poll"

    def __init__(
        self, url: str, token: str, hello: Hello, hear: Hear, cursor: Callable[[], str]
    ) -> None:
        self._hear = hear
        self._cursor = cursor
        self._session = hello.session
        self._closed = threading.Event()
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/msgpack"},
            timeout=httpx.Timeout(ANSWER_LIMIT, connect=OPEN_LIMIT),
        )
        try:
            [frame] = self._post(relay.encode(hello))
            if not isinstance(frame, Welcome):
                raise Lost("No welcome.")
        except (Lost, ValueError) as error:
            self._http.close()
            raise Lost(str(error)) from error
        self.welcome = frame

    def send(self, frame: bytes) -> None:
        for answer in self._post(self._poll("", 0), frame):
            self._hear(answer)

    def listen(self) -> None:
        try:
            while not self._closed.is_set():
                wait = round(1000 * relay.POLL_WAIT)
                for answer in self._post(self._poll(self._cursor(), wait)):
                    self._hear(answer)
        finally:
            self._http.close()
        raise Lost("The polling was ended.")

    def abandon(self) -> None:
        self._closed.set()

    def farewell(self) -> None:
        self._closed.set()

    def _poll(self, after: str, wait: int) -> bytes:
        return relay.encode(Poll(self.welcome.connection, self._session, after, wait))

    def _post(self, *frames: bytes) -> list[Frame]:
        try:
            answer = self._http.post(relay.EXCHANGE_PATH, content=relay.bundle(frames))
            if answer.is_error:
                raise Lost(f"The relay answers with HTTP {answer.status_code}.")
            found = [relay.decode(frame) for frame in relay.unbundle(answer.content)]
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            raise Lost(
                f"The relay does not answer: {str(error) or type(error).__name__}"
            ) from error
        except WireError as error:
            raise Lost(error.detail) from error
        if any(isinstance(frame, Displaced) for frame in found):
            raise Elsewhere("Another process has connected as this node.")
        return found


def _binary(message: str | bytes) -> bytes:
    if isinstance(message, str):
        raise WireError("A frame is binary.")
    return message
