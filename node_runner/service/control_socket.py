"""Status and drain over a Unix socket, one for each running node.

The sockets are in a folder that only the owner may enter: no port, no password, and a node that was
killed answers nothing, whatever file it left.
"""

import contextlib
import json
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from node_runner.machine import directories

MAX_REQUEST = 100
"""Bytes of a request: a word."""

MAX_ANSWER = 2**20

TIMEOUT = 20.0
"""Seconds for one answer: the node may have to ask the platform."""

Describe = Callable[[], dict[str, Any]]


class ControlSocket:
    """The Unix socket of this process. Use as a context manager."""

    def __init__(self, identity: dict[str, Any], drain: Callable[[], None]) -> None:
        """
        Args:
            identity: The part of the status that does not change: model, device, wallet,
                platform.
            drain: Has the node finish and leave; called in another thread.
        """
        self.drain = drain
        self.describe: Describe = lambda: {"phase": "starting"}
        """Gives the part of the status that changes; called in another thread."""
        self._identity = {
            **identity,
            "pid": os.getpid(),
            "parent": os.getppid(),
            "started_at": time.time(),
        }
        self._path = directories.make_private(directories.sockets()) / f"{os.getpid()}.sock"
        self._path.unlink(missing_ok=True)
        with _address(self._path) as address:
            self._server = socketserver.ThreadingUnixStreamServer(address, self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "ControlSocket":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)

    def _answer(self, request: str) -> dict[str, Any]:
        match request:
            case "status":
                return self._identity | self.describe()
            case "drain":
                self.drain()
                return self._identity
            case _:
                return {"error": f"no such request: {request!r}"}

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        answer = self._answer

        class Handler(socketserver.StreamRequestHandler):
            timeout = TIMEOUT

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the client went away
                    request = self.rfile.readline(MAX_REQUEST).decode(errors="replace").strip()
                    self.wfile.write(json.dumps(answer(request)).encode())

        return Handler


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A socket's address by way of its folder: an address has 107 bytes at most, which a path may
    exceed."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask_running_nodes(request: str = "status") -> list[dict[str, Any]]:
    """What each running node of this user says, the oldest first."""
    answers = [answer for answer in map(_ask(request), _sockets()) if answer is not None]
    return sorted(answers, key=lambda answer: answer["started_at"])


def _sockets() -> Iterator[Path]:
    folder = directories.sockets()
    return iter(sorted(folder.glob("*.sock"))) if folder.is_dir() else iter(())


def _ask(request: str) -> Callable[[Path], dict[str, Any] | None]:
    def ask(path: Path) -> dict[str, Any] | None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            try:
                with _address(path) as address:
                    connection.connect(address)
                connection.sendall(f"{request}\n".encode())
                with connection.makefile("rb") as answer:
                    found = json.loads(answer.read(MAX_ANSWER))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)  # left by a process that was killed
                return None
            except (OSError, ValueError):
                return None
        return found if isinstance(found, dict) and "started_at" in found else None

    return ask
