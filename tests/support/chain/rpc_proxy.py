"""A JSON-RPC endpoint between a test and a chain, which loses and changes what it is told to."""

import http.client
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Call = dict[str, Any]


class Loss(Enum):
    """What the caller cannot tell apart."""

    REQUEST = auto()
    """The chain never hears of it."""
    ANSWER = auto()
    """The chain does it, and nobody is told."""


Rule = Callable[[Call], "Loss | Any | None"]
"""For each call: a loss, another answer's fields, or none to pass it on."""

Alteration = Callable[[Call, Any], Any]
"""The result that is passed back, from a call and the chain's result."""


def unaltered(_: Call, result: Any) -> Any:
    """What the chain says."""
    return result


def poa_blocks(call: Call, result: Any) -> Any:
    """Blocks with as much in ``extraData`` as BSC's, whose validators sign there."""
    if call["method"].startswith("eth_getBlockBy") and result:
        result["extraData"] = "0x" + "d9" * 278
    return result


def lossy(seed: int, share: float = 0.1) -> Rule:
    """Lose so many of the answers: half of them before the chain has heard, half after."""
    dice = random.Random(seed)

    def rule(_: Call) -> Loss | None:
        drawn = dice.random()
        if drawn < share / 2:
            return Loss.REQUEST
        return Loss.ANSWER if drawn < share else None

    return rule


def is_send(call: Call) -> bool:
    return bool(call["method"] == "eth_sendRawTransaction")


def deafness(call: Call) -> Loss | None:
    """An endpoint that hears of no transaction."""
    return Loss.REQUEST if is_send(call) else None


def muteness(call: Call) -> Loss | None:
    """An endpoint that tells nobody what it did."""
    return Loss.ANSWER if is_send(call) else None


class Proxy:
    """Passes calls on to ``target``, as ``rule`` says, and changes answers by ``alter``."""

    def __init__(
        self,
        target: str,
        rule: Rule = lambda _: None,
        alter: Alteration = unaltered,
    ) -> None:
        self.rule = rule
        self.alter = alter
        self.takes_batches = True
        self.calls: list[Call] = []
        self.lost = 0
        self._target = urlsplit(target)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = proxy._answer(json.loads(body), body)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator["Proxy"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _answer(self, call: Call | list[Call], body: bytes) -> bytes | None:
        if isinstance(call, list) and not self.takes_batches:
            return b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32600, "message": "batch"}}'
        if isinstance(call, list):
            answers = [self._answer(each, json.dumps(each).encode()) for each in call]
            if any(answer is None for answer in answers):
                return None
            return b"[" + b",".join(answer for answer in answers if answer is not None) + b"]"
        self.calls.append(call)
        verdict = self.rule(call)
        if isinstance(verdict, Loss):
            self.lost += 1
            if verdict is Loss.ANSWER:
                self._ask(body)
            return None
        if verdict is not None:
            return json.dumps({"jsonrpc": "2.0", "id": call["id"], **verdict}).encode()
        answer = json.loads(self._ask(body))
        if "result" in answer:
            answer["result"] = self.alter(call, answer["result"])
        return json.dumps(answer).encode()

    def _ask(self, body: bytes) -> bytes:
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port)
        try:
            connection.request("POST", "/", body, {"Content-Type": "application/json"})
            return connection.getresponse().read()
        finally:
            connection.close()
