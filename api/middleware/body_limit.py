"""Bodies over a size, JSON over a depth or of too many parts, and bodies that do not come to an
end, are refused before anything parses them."""

from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import BodyTooLarge, MalformedJson
from api.http.problem_details import render
from api.middleware.body_sizes import BodySizes
from api.server.errors import TransfersFull, TransferTooSlow
from api.server.transfers import TransferBudget
from mesh import json_text
from mesh.errors import MeshError

MAX_BRACKETS = 20_000
"""Arrays and objects of a body: a long chat with tools has some thousands."""


class BodyLimit:
    """Takes a body in before anything parses it, and refuses one over the limits."""

    def __init__(
        self,
        app: ASGIApp,
        sizes: BodySizes,
        transfers: TransferBudget,
        owner_of: Callable[[Scope], str],
        unlimited: Collection[str] = (),
        never_parsed: Collection[str] = (),
    ) -> None:
        """
        Args:
            app: What gets the body.
            sizes: How long a body may be.
            transfers: Counts the bodies that are half here.
            owner_of: Whose body the request's is, by its scope.
            unlimited: Paths whose bodies are left to their routes.
            never_parsed: Paths whose bodies are not JSON.
        """
        self._app = app
        self._sizes = sizes
        self._transfers = transfers
        self._owner_of = owner_of
        self._unlimited = unlimited
        self._never_parsed = never_parsed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._unlimited:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except BodyTooLarge as error:  # whose rest the server drops, so that this gets through
            await render(error, scope["path"])(scope, receive, send)
            return
        except (TransferTooSlow, TransfersFull) as error:
            await _closing(error, scope["path"])(scope, receive, send)
            return
        if scope["path"] not in self._never_parsed:
            try:
                json_text.check(body.get("body", b""), MAX_BRACKETS)
            except json_text.MalformedJson as error:
                await render(MalformedJson(str(error)), scope["path"])(scope, receive, send)
                return
        unread = [body]
        del body  # the route's alone from now on, however long its answer takes

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> Message:
        """The whole body as one message; or that the client went away.

        Raises:
            BodyTooLarge: it is, or says so.
            TransferTooSlow: it does not come.
            TransfersFull: others are on their way.
        """
        limit = self._sizes.of(scope)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) >= 16 or int(declared) > limit:
            raise _too_large(limit)
        body = bytearray()
        with self._transfers.open(self._owner_of(scope)) as transfer:
            while True:
                message = await transfer.wait(receive())
                if message["type"] != "http.request":
                    return message
                piece = message.get("body", b"")
                if len(body) + len(piece) > limit:
                    raise _too_large(limit)
                transfer.add(len(piece))
                body += piece
                if not message.get("more_body", False):
                    return {"type": "http.request", "body": bytes(body), "more_body": False}


def _too_large(limit: int) -> BodyTooLarge:
    if not limit:
        return BodyTooLarge("A request like this has no body.")
    return BodyTooLarge(f"A body may have {limit} bytes at most.")


def _closing(error: MeshError, path: str) -> ASGIApp:
    """The answer to a body whose rest is not waited for."""
    response = render(error, path)
    response.headers["Connection"] = "close"
    return response
