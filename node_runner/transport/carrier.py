"""The two ways to the relay: a WebSocket, and long polls where WebSockets are blocked."""

from collections.abc import Callable
from typing import Protocol

from mesh.relay import Frame, Welcome

ANSWER_LIMIT = 5.0
"""Seconds of silence in one exchange over HTTP."""

OnFrame = Callable[[Frame], None]


class ConnectionLost(Exception):
    """The way to the relay is gone, or never was there; the message says why."""


class WebSocketBlocked(ConnectionLost):
    """Something answered, but not as a relay that takes WebSockets does."""


class ConnectionSuperseded(ConnectionLost):
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
