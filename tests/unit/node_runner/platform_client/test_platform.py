"""The node's side of registration and heartbeats, against a server that answers as it is told."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from mesh.node_api import Heartbeat
from node_runner.platform_client import registration
from node_runner.platform_client.registration import (
    HeartbeatReply,
    NodeForgotten,
    NodeRegistration,
    NodeSuperseded,
    Platform,
    PlatformError,
)

PATIENCE = 10.0

IDENTITY = NodeRegistration(
    wallet_address="0x" + "ab" * 20,
    model_id="m",
    span=(2, 4),
    edge=False,
    gpu_model="CPU",
    vram_gb=0,
    public_addr="0.0.0.0:31330",
    location="unknown",
    device_id=None,
    gpu_index=0,
    quantization="none",
    memory_bytes=0,
)
REGISTERED = {
    "node_id": "node_1",
    "layers_served": [2, 3],
    "edge": False,
    "node_token": "the node's token",
    "heartbeat_interval_sec": 0.05,
}
BEAT = {"status": "ok", "should_rebalance": False, "start_layer": 2, "end_layer": 4}


def problem(code: str) -> dict[str, str]:
    return {"code": code, "detail": "What it says."}


TROUBLES: dict[str, tuple[int, Any, dict[str, str]]] = {
    "rate limited": (429, problem("rate_limited"), {}),
    "an outage": (503, problem("unavailable"), {}),
    "a bug": (500, problem("internal_error"), {}),
    "a proxy's page": (502, "<html>Bad gateway</html>", {}),
    "a proxy that knows no such host": (404, "<html>Not found</html>", {}),
    "a redirect": (302, "", {"Location": "http://login.hotel.example/"}),
    "a login page": (200, "<html>Welcome to our hotel</html>", {}),
    "somebody else's list": (200, [], {}),
    "somebody else's object": (200, {"error": "not logged in"}, {}),
    "somebody else's refusal": (401, {"error": "not logged in"}, {}),
}
"""Status, body and headers of what passes by itself."""


class Server(HTTPServer):
    """Gives each path the next of its answers, and the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any, dict[str, str]]]] = {
            "/api/nodes/register-distributed": [(200, REGISTERED, {})],
            "/api/nodes/heartbeat": [(200, BEAT, {})],
        }
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def next(self, path: str) -> tuple[int, Any, dict[str, str]]:
        self.asked.append(path)
        waiting = self.answers[path]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body, headers = self.server.next(self.path)
        content = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(registration, "RETRY_DELAY", 0.01)
    with Server() as opened:
        threading.Thread(target=opened.serve_forever, args=(0.01,), daemon=True).start()
        yield opened
        opened.shutdown()


@pytest.fixture
def node(server: Server) -> Iterator[Platform]:
    made = Platform(f"http://127.0.0.1:{server.server_port}", IDENTITY, "the machine's token")
    yield made
    made.leave()
    made.close()


def until(look: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_node_waits_for_whatever_may_pass(server: Server, node: Platform) -> None:
    path = "/api/nodes/register-distributed"
    server.answers[path] = [*TROUBLES.values(), (200, REGISTERED, {})]
    assert node.join() == "node_1"
    assert server.asked == [path] * (len(TROUBLES) + 1)
    assert (node.span, node.token) == ((2, 4), "the node's token")


def test_it_waits_for_as_long_as_the_platform_asks(server: Server, node: Platform) -> None:
    limited = (429, problem("rate_limited"), {"Retry-After": "1"})
    server.answers["/api/nodes/register-distributed"].insert(0, limited)
    began = time.monotonic()
    node.join()
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(("status", "code"), [(403, "forbidden"), (404, "model_not_found")])
def test_a_refusal_is_one(server: Server, node: Platform, status: int, code: str) -> None:
    server.answers["/api/nodes/register-distributed"] = [(status, problem(code), {})]
    with pytest.raises(PlatformError, match=rf"What it says. \({code}\)"):
        node.join()


class Listener:
    """What a node is told by its heartbeats."""

    def __init__(self, node: Platform, *, measure: Callable[[], Heartbeat] = Heartbeat) -> None:
        self.answers: list[HeartbeatReply] = []
        self.ends: list[PlatformError] = []
        node.join()
        node.start_heartbeats(measure, self.answers.append, self.ends.append)


def test_heartbeats_outlive_whatever_may_pass(server: Server, node: Platform) -> None:
    """From the first one on, which is not waited for."""
    refused = (403, problem("forbidden"), {})
    server.answers["/api/nodes/heartbeat"] = [*TROUBLES.values(), refused, (200, BEAT, {})]
    listener = Listener(node)
    until(lambda: len(listener.answers) > 1)
    assert listener.answers[0] == HeartbeatReply((2, 4), should_rebalance=False)
    assert listener.ends == []


def test_heartbeats_outlive_a_figure_that_cannot_be_had(node: Platform) -> None:
    figures = iter([ZeroDivisionError("no step yet")])

    def measure() -> Heartbeat:
        for error in figures:
            raise error
        return Heartbeat()

    listener = Listener(node, measure=measure)
    until(lambda: listener.answers)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "token_invalid", NodeForgotten),
        (404, "node_not_found", NodeForgotten),
        (409, "node_superseded", NodeSuperseded),
    ],
)
def test_a_node_that_is_none_any_more_is_told_once(
    server: Server, node: Platform, status: int, code: str, kind: type[PlatformError]
) -> None:
    """Also by the first heartbeat, which comes minutes after the registration."""
    server.answers["/api/nodes/heartbeat"] = [(status, problem(code), {})]
    listener = Listener(node)
    until(lambda: listener.ends)
    time.sleep(0.2)  # four heartbeats
    assert [type(each) for each in listener.ends] == [kind]
    assert server.asked.count("/api/nodes/heartbeat") == 1
    assert listener.answers == []


def test_after_a_trouble_the_next_heartbeat_comes_early(server: Server, node: Platform) -> None:
    slow = {**REGISTERED, "heartbeat_interval_sec": 60}
    server.answers["/api/nodes/register-distributed"] = [(200, slow, {})]
    server.answers["/api/nodes/heartbeat"].insert(0, TROUBLES["an outage"])
    listener = Listener(node)
    until(lambda: listener.answers)
