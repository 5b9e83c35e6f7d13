"""A connection to the relay, whatever carries it: a WebSocket, or long polls where those are
blocked."""

from collections.abc import Callable
from typing import Protocol

from mesh.relay import Frame, Welcome

ANSWER_TIMEOUT = 5.0
"""Seconds of silence in one exchange over HTTP."""

OnFrame = Callable[[Frame], None]


class ConnectionLost(Exception):
    """The connection to the relay is gone, or could not be opened; the message says why."""


class WebSocketBlocked(ConnectionLost):
    """Something answered, but not as a relay that takes WebSockets does."""


class ConnectionSuperseded(ConnectionLost):
    """Another process has connected as this node."""


class Carrier(Protocol):
    """An open connection. Methods may be called from several threads."""

    name: str
    welcome: Welcome

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

    def abandon(self) -> None:
        """End the connection at once, also while other threads send. Never raises."""
        ...

    def say_goodbye(self) -> None:
        """End the connection in order: the node leaves. Never raises."""
        ...
