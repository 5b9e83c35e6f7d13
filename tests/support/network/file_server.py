"""A web server over a folder that gives ranges, counts what it gave, and errs when told to."""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

PIECE = 1024
"""Bytes written at once, so that a cut may come in the middle."""


@dataclass
class Faults:
    """What goes wrong. ``cuts``: bytes after which the next answers with weights break off, each
    used once. ``statuses``: of the next answers, the same way. ``on_piece``: called before each
    piece of weights is sent."""

    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    retry_after: str | None = None
    ignores_range: bool = False
    shorter_ranges: bool = False
    longer_bodies: bool = False
    other_tag: bool = False
    no_tag: bool = False
    on_piece: Callable[[], None] = lambda: None


@dataclass
class Asked:
    """One request for a file that exists, or does not."""

    name: str
    start: int
    end: int
    headers: dict[str, str]


class FileServer:
    """Serves ``folder`` at ``url``, below an optional ``route`` such as a hub's.

    ``given``: bytes of bodies sent, by file.
    """

    def __init__(self, folder: Path, route: str = "/") -> None:
        self.folder = folder
        self.route = route
        self.faults = Faults()
        self.given: Counter[str] = Counter()
        self.asked: list[Asked] = []
        self.redirect: str | None = None
        """Another server that has the weights, to which those who ask for them are sent."""
        self.signature = ""
        """Query string that they are given for it."""
        self.redirected = 0
        self.tokens: set[str] | None = None
        """Query strings that are let in; none for all."""
        self.bearer: str | None = None
        """Token without which nothing is given; none for all."""
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def names(self) -> set[str]:
        return {one.name for one in self.asked}

    def weights_given(self) -> int:
        """Bytes of all safetensors files that went out."""
        with self.lock:
            return sum(n for name, n in self.given.items() if name.endswith(".safetensors"))

    def reset(self) -> None:
        with self.lock:
            self.given.clear()
            self.asked.clear()


@contextmanager
def serving(folder: Path, route: str = "/") -> Iterator[FileServer]:
    server = FileServer(folder, route)
    try:
        yield server
    finally:
        server.close()


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path, _, query = self.path.partition("?")
            name = unquote(path.removeprefix(server.route))
            file = server.folder / name
            weights = name.endswith(".safetensors")
            if server.bearer and self.headers.get("Authorization") != f"Bearer {server.bearer}":
                return self._empty(401)
            if server.tokens is not None and query not in server.tokens:
                return self._empty(403)
            if weights and server.faults.statuses:
                return self._empty(server.faults.statuses.pop(0))
            if not file.is_file():
                server.asked.append(Asked(name, 0, 0, dict(self.headers)))
                return self._empty(404)
            if weights and server.redirect is not None:
                server.redirected += 1
                self.send_response(302)
                self.send_header("Location", f"{server.redirect}/{name}?{server.signature}")
                self.send_header("X-Repo-Commit", "c" * 40)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            self._give(file, name, weights=weights, with_body=with_body)
            return None

        def _give(self, file: Path, name: str, *, weights: bool, with_body: bool) -> None:
            content, faults = file.read_bytes(), server.faults
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            if weights and faults.other_tag:
                tag = '"another"'
            start, end = 0, len(content)
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            condition = self.headers.get("If-Range", tag)
            partial = asked is not None and not faults.ignores_range and condition == tag
            if asked is not None and partial:
                start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
                if start >= len(content):
                    return self._empty(416)
                if faults.shorter_ranges and weights and end - start > 8:
                    end -= 1
            server.asked.append(Asked(name, start, end, dict(self.headers)))
            body = content[start:end]
            if faults.longer_bodies and weights:
                body += b"more"
            self.send_response(206 if partial else 200)
            if not faults.no_tag:
                self.send_header("ETag", tag)
            self.send_header("X-Repo-Commit", "c" * 40)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self._send(body, name, weights=weights)
            return None

        def _send(self, body: bytes, name: str, *, weights: bool) -> None:
            large = weights and len(body) > PIECE
            cut = server.faults.cuts.pop(0) if large and server.faults.cuts else None
            sent = 0
            while sent < len(body) and (cut is None or sent < cut):
                if large:
                    server.faults.on_piece()
                piece = body[sent : sent + PIECE]
                try:
                    self.wfile.write(piece)
                except OSError:  # the other side was killed
                    break
                sent += len(piece)
                with server.lock:
                    server.given[name] += len(piece)
            self.close_connection = self.close_connection or sent < len(body)

        def _empty(self, status: int) -> None:
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            if server.faults.retry_after is not None:
                self.send_header("Retry-After", server.faults.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
