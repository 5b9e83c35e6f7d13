"""A name for each request: its answer has it as `X-Request-Id`, and so has all that is logged."""

import secrets

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

HEADER = "X-Request-Id"

STARTS = ("http.response.start", "websocket.http.response.start")


class RequestIds:
    """Names requests. What a client says is not taken: it could stand for anything in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        name = secrets.token_hex(16)

        async def send_named(message: Message) -> None:
            if message["type"] in STARTS:
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        with bound_contextvars(http_request_id=name):
            await self._app(scope, receive, send_named)
