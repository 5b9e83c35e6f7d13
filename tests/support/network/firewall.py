"""A firewall, or a home router, in front of a server: it forgets connections, and tells nobody."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.support.network.gate import Gate


class Firewall(Gate):
    """Listens on ``port`` of loopback until closed. What is sent over a connection that it has
    forgotten is taken and dropped, the end of the connection included."""

    def __init__(self, target: int | Path) -> None:
        """
        Args:
            target: Port on loopback, or Unix socket, of the server.
        """
        self._target = target
        self._forgotten: set[socket.socket] = set()
        self._blocks = False
        super().__init__(target if isinstance(target, int) else 0)

    def forget(self) -> None:
        """Forget the connections that are open now. New ones get through."""
        self._forgotten |= set(self._sockets)

    def block(self) -> None:
        """Forget the connections that are open now, and those that are opened from now on."""
        self._blocks = True
        self.forget()

    def unblock(self) -> None:
        """Let new connections through. Those that were forgotten stay so."""
        self.forget()
        self._blocks = False

    @property
    def opened(self) -> int:
        """Connections that were opened since the beginning."""
        return len(self._sockets) // 2

    def _open(self, near: socket.socket) -> socket.socket:
        if isinstance(self._target, int):
            return super()._open(near)
        far = socket.socket(socket.AF_UNIX)
        far.connect(str(self._target))
        return far

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if self._blocks:
                    self._forgotten |= {source, sink}
                if source not in self._forgotten:
                    sink.sendall(data)
        if source not in self._forgotten:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def firewall(target: int | Path) -> Iterator[Firewall]:
    made = Firewall(target)
    try:
        yield made
    finally:
        made.close()
