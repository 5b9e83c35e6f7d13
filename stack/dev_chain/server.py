"""The development chain's HTTP server: JSON-RPC on loopback, and what browsers ask for (CORS)."""

import ipaddress
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from stack.dev_chain.evm.chain import DevelopmentChain
from stack.dev_chain.jsonrpc import JsonRpc
from stack.dev_chain.methods import methods

MAX_BODY = 5 * 1024 * 1024
"""Bytes of a request; geth's."""

IDLE_LIMIT = 60.0
"""Seconds that a connection may send nothing; longer than clients keep theirs for reuse."""

BODY_LIMIT = 30.0
"""Seconds in which a request's body has to be there; geth's."""

EXTENSIONS = ("chrome-extension", "moz-extension", "safari-web-extension")
"""Schemes of the origins that wallets in a browser have, which their users installed."""

PREFLIGHT_AGE = 600
"""Seconds for which a browser need not ask again."""


def serve(port: int) -> ThreadingHTTPServer:
    """A chain of its own behind a server on the loopback address, which begins with its
    `serve_forever`."""

    class Handler(RpcHandler):
        rpc = JsonRpc(methods(DevelopmentChain()))

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    return server


class RpcHandler(BaseHTTPRequestHandler):
    """One connection. Answers this machine alone: neither a page of another site nor a name that
    somebody points at 127.0.0.1 (DNS rebinding) may use the chain."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_LIMIT
    rpc: JsonRpc
    """What answers the bodies of this server."""

    def do_GET(self) -> None:
        """Whether the server is there."""
        if self._is_allowed():
            self._respond(HTTPStatus.OK)

    def do_OPTIONS(self) -> None:
        """A browser's question before it sends a page's call."""
        if self._is_allowed():
            self._respond(HTTPStatus.NO_CONTENT)

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "content length required")
        elif len(length) > 15 or int(length) > MAX_BODY:
            message = f"content length too large ({length}>{MAX_BODY})"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        else:
            try:
                body = self._read(int(length))
            except TimeoutError:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the body takes too long")
            else:
                self._respond(HTTPStatus.OK, self.rpc.answer(body), "application/json")

    def log_message(self, *_: object) -> None:
        """Logs nothing: a line for each call helps nobody."""

    def _is_allowed(self) -> bool:
        origin = self.headers.get("Origin")
        if not _is_here(_hostname(f"//{self.headers.get('Host', '')}")):
            self._refuse(HTTPStatus.FORBIDDEN, "invalid host specified")
        elif origin is not None and not _may_call(origin):
            self._refuse(HTTPStatus.FORBIDDEN, "pages of loopback alone may use this chain")
        else:
            return True
        return False

    def _read(self, length: int) -> bytes:
        give_up = time.monotonic() + BODY_LIMIT
        parts = bytearray()
        while len(parts) < length:
            part = self.rfile.read1(length - len(parts))
            if not part or time.monotonic() > give_up:
                raise TimeoutError
            parts += part
        return bytes(parts)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        # What may still come of its body is not read.
        self.close_connection = True
        self._respond(status, message.encode(), "text/plain; charset=utf-8")

    def _respond(self, status: HTTPStatus, body: bytes = b"", kind: str = "") -> None:
        self.send_response(status)
        origin = self.headers.get("Origin")
        self.send_header("Vary", "Origin")
        if origin is not None and status != HTTPStatus.FORBIDDEN:
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Allow-Methods", "GET, POST")
            self.send_header("Access-Control-Allow-Headers", "*")
            self.send_header("Access-Control-Max-Age", str(PREFLIGHT_AGE))
        if kind:
            self.send_header("Content-Type", kind)
        if self.close_connection:
            self.send_header("Connection", "close")
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _may_call(origin: str) -> bool:
    """Whether a page or an extension with this origin may use the chain."""
    return origin.partition("://")[0] in EXTENSIONS or _is_here(_hostname(origin))


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_here(host: str | None) -> bool:
    """Whether a host is this machine's loopback."""
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
