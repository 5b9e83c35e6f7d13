"""A connection to the relay: what WebSocket and HTTP long polls have in common."""

from collections.abc import Callable
from typing import Protocol

from mesh.relay import Frame, Welcome

ANSWER_TIMEOUT = 5.0
"""Seconds of silence in one exchange over HTTP."""

EXCHANGE_TIMEOUT = 60.0
"""Seconds for one exchange over HTTP: the largest frame over a slow line."""

OnFrame = Callable[[Frame], None]


class ConnectionLost(Exception):
    """The connection to the relay is gone, or could not be opened; the message says why."""


class WebSocketBlocked(ConnectionLost):
    """Something answered, but not as a relay that takes WebSockets does."""


class ConnectionSuperseded(ConnectionLost):
    """The connection is the node's no more: another process has connected as this node, or its
    machine's token was taken back, which the next heartbeat tells."""

    def __init__(self) -> None:
        super().__init__(
            "Another process has connected as this node, or its machine's token was taken back."
        )


class RelayConnection(Protocol):
    """An open connection to the relay. Methods may be called from several threads."""

    kind: str
    """``websocket`` or ``long poll``."""

    welcome: Welcome
    """The relay's answer to what the connection began with."""

    def send(self, frame: bytes) -> None:
        """
        Raises:
            ConnectionLost: the frame may have arrived.
        """
        ...

    def listen(self) -> None:
        """Hand over each frame that comes; never returns.

        Raises:
            ConnectionLost: when the connection has ended.
        """
        ...

    def abort(self) -> None:
        """End the connection at once, also while other threads send. Never raises."""
        ...

    def say_goodbye(self) -> None:
        """End the connection in order, since the node leaves the relay. Never raises."""
        ...
