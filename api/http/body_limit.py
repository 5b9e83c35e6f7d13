"""Bodies over a size, and JSON over a depth, are refused before anything parses them."""

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import BodyTooLarge, MalformedJson
from api.http.problem_details import render
from mesh import json_text


class BodyLimit:
    """Takes a body in before anything parses it, and refuses one over the limits."""

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        unlimited: Collection[str] = (),
        never_parsed: Collection[str] = (),
    ) -> None:
        """
        Args:
            unlimited: Paths whose bodies are left to their routes.
            never_parsed: Paths whose bodies are not JSON.
        """
        self._app = app
        self._max = max_bytes
        self._unlimited = unlimited
        self._never_parsed = never_parsed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._unlimited:
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        body = None
        if declared.isdigit() and len(declared) < 16 and int(declared) <= self._max:
            body = await self._read(receive)
        if body is None:
            refusal = BodyTooLarge(f"A body may have {self._max} bytes at most.")
            await render(refusal)(scope, receive, send)
            return
        if scope["path"] not in self._never_parsed:
            try:
                json_text.check(body.get("body", b""))
            except json_text.MalformedJson as error:
                await render(MalformedJson(str(error)))(scope, receive, send)
                return
        unread = [body]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> Message | None:
        """The whole body as one message; none if it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message  # the client went away
            body += message.get("body", b"")
            if len(body) > self._max:
                return None
            if not message.get("more_body", False):
                return {"type": "http.request", "body": bytes(body), "more_body": False}
