"""JSON-RPC 2.0: bodies into calls, and answers as geth gives them."""

import json
import threading
from collections.abc import Mapping
from typing import Any

import structlog

from mesh import json_text
from stack.dev_chain.errors import (
    InternalError,
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    ParseError,
    RpcError,
)
from stack.dev_chain.methods import Method

MAX_BATCH = 1000
"""Calls of a batch; geth's."""

log = structlog.get_logger()


class JsonRpc:
    """Answers bodies by a table of methods, one call at a time, whatever thread asks."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods
        self._lock = threading.Lock()

    def answer(self, body: bytes) -> bytes:
        """The answer to a body; empty where it asks for none, as a notification."""
        try:
            read = json_text.loads(body)
        except ValueError:
            return _encode(_failure(None, ParseError("parse error")))
        if not isinstance(read, list):
            answer = self._call(read)
            return b"" if answer is None else _encode(answer)
        if not read:
            return _encode(_failure(None, InvalidRequest("empty batch")))
        if len(read) > MAX_BATCH:
            return _encode(_failure(None, InvalidRequest("batch too large")))
        answers = [answer for each in read if (answer := self._call(each)) is not None]
        return _encode(answers) if answers else b""

    def _call(self, call: Any) -> dict[str, Any] | None:
        """A call's answer; none for a notification."""
        if not isinstance(call, dict):
            return _failure(None, InvalidRequest("invalid request"))
        number = call.get("id")
        if isinstance(number, dict | list | bool):
            return _failure(None, InvalidRequest("invalid request"))
        method = call.get("method")
        if call.get("jsonrpc") != "2.0" or not isinstance(method, str):
            return _failure(number, InvalidRequest("invalid request"))
        try:
            with self._lock:
                result = self._run(method, call.get("params"))
        except RpcError as error:
            answer = _failure(number, error)
        except Exception:
            # py-evm's exceptions share no base class, and one call must not end the chain.
            log.exception("call_failed", method=method)
            answer = _failure(number, InternalError("method handler crashed"))
        else:
            answer = {"jsonrpc": "2.0", "id": number, "result": result}
        return answer if "id" in call else None

    def _run(self, name: str, params: Any) -> Any:
        method = self._methods.get(name)
        if method is None:
            raise MethodNotFound(f"the method {name} does not exist/is not available")
        if params is None:
            params = []
        if not isinstance(params, list):
            raise InvalidParams("non-array args")
        return method(params)


def _failure(number: Any, error: RpcError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": error.as_json()}


def _encode(answer: Any) -> bytes:
    return json.dumps(answer).encode()
