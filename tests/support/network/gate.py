"""TCP proxies before a server: one that a test may cut, silence, let forget its connections, or
teach to refuse WebSockets, and one that has to be asked for each connection."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Gate:
    """Listens on ``port`` of loopback until closed.

    Args:
        target_port: Port on loopback, or Unix socket, of the server.
    """

    def __init__(self, target_port: int | Path) -> None:
        self.refuses_websockets = False
        self.upgrades = 0
        self.target_port = target_port
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        self._forgotten: set[socket.socket] = set()
        self._blocks = False
        self.forgets_after: bytes | None = None
        """What lets the gate forget the connection over which it is sent, once: it arrives, and no
        answer comes."""
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def silence(self) -> None:
        """Nothing gets through, and nobody is told."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def forget(self) -> None:
        """Take and drop whatever is sent over the connections that are open now, their ends
        included, as a firewall does that has forgotten them. New ones get through."""
        self._forgotten |= set(self._sockets)

    def block(self) -> None:
        """Forget the connections that are open now, and those that are opened from now on."""
        self._blocks = True
        self.forget()

    def unblock(self) -> None:
        """Let new connections through. Those that were forgotten stay so."""
        if self._blocks:
            self.forget()
        self._blocks = False

    @property
    def opened(self) -> int:
        """Connections that were opened since the beginning."""
        return len(self._sockets) // 2

    def sever(self) -> None:
        """All connections break."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._flows.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self.sever()
        for thread in self._threads:
            thread.join()
        for each in (self._listening, *self._sockets):
            each.close()

    def _start(self, *work: object) -> None:
        target, *arguments = work
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
                far = self._open(near)
            except OSError:
                return
            self._sockets += [near, far]
            self._start(self._carry, near, far)
            self._start(self._carry, far, near)

    def _open(self, near: socket.socket) -> socket.socket:
        """The other side of a new connection."""
        if isinstance(self.target_port, int):
            return socket.create_connection(("127.0.0.1", self.target_port))
        far = socket.socket(socket.AF_UNIX)
        far.connect(str(self.target_port))
        return far

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                self._flows.wait()
                if self._blocks:
                    self._forgotten |= {source, sink}
                if source in self._forgotten:
                    continue
                if self.forgets_after is not None and self.forgets_after in data:
                    self._forgotten.add(sink)
                    self.forgets_after = None
                if b"upgrade: websocket" in data.lower():
                    self.upgrades += 1
                    if self.refuses_websockets:
                        source.sendall(FORBIDDEN)
                        break
                sink.sendall(data)
        for each in () if source in self._forgotten else (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Tunnel(Gate):
    """An HTTP proxy (RFC 9110, 9.3.6). Whatever host is asked for is the target."""

    def __init__(self, target_port: int) -> None:
        self.asked_for: list[str] = []
        super().__init__(target_port)

    def _open(self, near: socket.socket) -> socket.socket:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += near.recv(1)
        method, host, _ = request.split(b" ", 2)
        assert method == b"CONNECT"
        self.asked_for.append(host.decode())
        near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return super()._open(near)


@contextlib.contextmanager
def gate(target_port: int | Path) -> Iterator[Gate]:
    made = Gate(target_port)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def tunnel(target_port: int) -> Iterator[Tunnel]:
    made = Tunnel(target_port)
    try:
        yield made
    finally:
        made.close()
