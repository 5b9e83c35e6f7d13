"""The relay connection over one WebSocket."""

import contextlib
import socket

from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException
from websockets.sync.client import ClientConnection, connect

from mesh import relay
from mesh.errors import WireError
from mesh.relay import Assembler, Hello, Welcome
from node_runner.transport.relay_connection import (
    ConnectionLost,
    ConnectionSuperseded,
    OnFrame,
    WebSocketBlocked,
)

OPEN_TIMEOUT = 5.0
"""Seconds for name, TCP, TLS and handshake together: three round trips on a bad link, and a packet
sent again."""


def open_websocket(url: str, token: str) -> ClientConnection:
    """A WebSocket to the relay, on which nothing has been said yet. Proxies and certificates are
    the environment's.

    Raises:
        ConnectionLost: the relay cannot be reached.
        WebSocketBlocked: the relay, or a proxy before it, refuses.
    """
    try:
        return connect(
            "ws" + url.rstrip("/").removeprefix("http") + relay.WEBSOCKET_PATH,
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,  # hidden states do not get shorter
            open_timeout=OPEN_TIMEOUT,
            close_timeout=1,
            ping_interval=None,  # keep-alives do that
            max_size=relay.MAX_MESSAGE_BYTES,
            max_queue=None,  # the relay sends no more than its window
        )
    except InvalidHandshake as error:
        raise WebSocketBlocked(f"{error}") from error
    except (OSError, WebSocketException, ImportError, EOFError) as error:
        raise ConnectionLost(f"{type(error).__name__}: {error}") from error


class WebSocketConnection:
    """The relay connection over one WebSocket, in both directions at once.

    Args:
        url: Of the platform.
        token: The node's.
        hello: What to begin with.
        on_frame: Called with each frame, by the thread that listens.

    Raises:
        ConnectionLost: the relay cannot be reached.
        WebSocketBlocked: the relay, or a proxy before it, refuses.
    """

    kind = "websocket"

    def __init__(self, url: str, token: str, hello: Hello, on_frame: OnFrame) -> None:
        self._on_frame = on_frame
        self._assembler = Assembler()
        self._connection = open_websocket(url, token)
        try:
            self._connection.send(relay.encode(hello))
            frame = relay.decode(_binary(self._connection.recv(timeout=OPEN_TIMEOUT)))
        except (OSError, WebSocketException, WireError) as error:
            self.abort()
            raise ConnectionLost(f"No welcome ({type(error).__name__}).") from error
        if not isinstance(frame, Welcome):
            self.abort()
            raise ConnectionLost("No welcome.")
        self.welcome = frame

    def send(self, frame: bytes) -> None:
        try:
            for message in relay.chunks(frame):
                self._connection.send(message)
        except (OSError, WebSocketException) as error:
            raise ConnectionLost(f"The connection is lost ({type(error).__name__}).") from error

    def listen(self) -> None:
        try:
            while True:
                frame = self._assembler.add(_binary(self._connection.recv()))
                if frame is not None:
                    self._on_frame(frame)
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd is not None else None
            if code == relay.SUPERSEDED:
                raise ConnectionSuperseded() from error
            raise ConnectionLost(f"The connection was closed (code {code}).") from error
        except (OSError, WebSocketException, WireError) as error:
            raise ConnectionLost(f"The connection is lost ({type(error).__name__}).") from error

    def abort(self) -> None:
        # Not close(): it would wait for whoever is sending into the void.
        with contextlib.suppress(OSError):  # it is closed already
            self._connection.socket.shutdown(socket.SHUT_RDWR)

    def say_goodbye(self) -> None:
        self._connection.close(relay.GOODBYE)


def _binary(message: str | bytes) -> bytes:
    if isinstance(message, str):
        raise WireError("A frame is binary.")
    return message
