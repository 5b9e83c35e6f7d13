"""An HTTP server in the platform's place, which answers as the test says."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mesh.node_api import HEARTBEAT_PATH, REGISTRATION_PATH

REGISTERED = {
    "node_id": "node_1",
    "layers_served": [2, 3],
    "edge": False,
    "node_token": "the node's token",
    "heartbeat_interval_sec": 0.05,
}
ACKNOWLEDGED = {"status": "ok", "should_rebalance": False, "start_layer": 2, "end_layer": 4}


def problem(code: str) -> dict[str, str]:
    return {"code": code, "detail": "What it says."}


@dataclass(frozen=True)
class Answer:
    """``body``: an object to send as JSON, or text."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


TEMPORARY: dict[str, Answer] = {
    "rate limited": Answer(429, problem("rate_limited")),
    "an outage": Answer(503, problem("unavailable")),
    "a bug": Answer(500, problem("internal_error")),
    "a proxy's page": Answer(502, "<html>Bad gateway</html>"),
    "a proxy that knows no such host": Answer(404, "<html>Not found</html>"),
    "a redirect": Answer(302, "", {"Location": "http://login.hotel.example/"}),
    "a login page": Answer(200, "<html>Welcome to our hotel</html>"),
    "somebody else's list": Answer(200, []),
    "somebody else's object": Answer(200, {"error": "not logged in"}),
    "somebody else's refusal": Answer(401, {"error": "not logged in"}),
}
"""What passes by itself."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    body: Any


class PlatformServer(ThreadingHTTPServer):
    """Gives each path the next of its answers, and the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {
            REGISTRATION_PATH: [Answer(200, REGISTERED)],
            HEARTBEAT_PATH: [Answer(200, ACKNOWLEDGED)],
        }
        self.requests: list[Request] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def paths(self) -> list[str]:
        """Of all requests, in their order."""
        return [request.path for request in self.requests]

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        waiting = self.answers[request.path]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


class _Handler(BaseHTTPRequestHandler):
    server: PlatformServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        body = json.loads(content) if content else None
        answer = self.server.answer(Request(self.command, self.path, token, body))
        sent = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent.encode())

    do_GET = do_DELETE = do_POST

    def log_message(self, *_: object) -> None: ...


@contextmanager
def platform_server() -> Iterator[PlatformServer]:
    with PlatformServer() as opened:
        threading.Thread(target=opened.serve_forever, args=(0.01,), daemon=True).start()
        yield opened
        opened.shutdown()
