"""Methods of a path, of all its routes together: what `OPTIONS` and 405 say, and `HEAD` wherever
`GET` is."""

import re
from collections.abc import Iterable

from fastapi.routing import iter_route_contexts
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import MethodNotAllowed
from api.http.problem_details import render


class AllowedMethods:
    """Answers what no route does. The framework knows one route's methods at a time, of which most
    have one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._exact: dict[str, set[str]] = {}
        self._patterns: list[tuple[re.Pattern[str], set[str]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        methods = self._methods(scope)
        method = scope["method"]
        if not methods or method in methods:  # without a route: 404
            await self._app(scope, receive, send)
        elif method == "HEAD" and "GET" in methods:
            await self._app({**scope, "method": "GET"}, receive, _HeadOnly(send))
        else:
            implied = {"OPTIONS", "HEAD"} if "GET" in methods else {"OPTIONS"}
            await _answer(method, scope["path"], methods | implied)(scope, receive, send)

    def _methods(self, scope: Scope) -> set[str]:
        """Those of all routes that are exactly this path, or that match it if none is, as OpenAPI
        has it; none if none does."""
        if not self._exact:
            self._collect(scope["app"].routes)
        path = scope["path"]
        if path in self._exact:
            return self._exact[path]
        found = (methods for pattern, methods in self._patterns if pattern.match(path))
        return set().union(*found)

    def _collect(self, routes: Iterable[BaseRoute]) -> None:
        for route in iter_route_contexts(list(routes)):
            # What is mounted are files.
            methods = {"GET"} if isinstance(route.original_route, Mount) else route.methods
            if not methods:
                continue  # a WebSocket
            if route.param_convertors:
                self._patterns.append((route.path_regex, set(methods)))
            else:
                self._exact.setdefault(route.path_format or "", set()).update(methods)


def _answer(method: str, path: str, allowed: set[str]) -> Response:
    if method == "OPTIONS":
        response = Response(status_code=204)
    else:
        error = MethodNotAllowed(f"{path} has no {method}; the header Allow says what it has.")
        response = render(error, path)
    response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


class _HeadOnly:
    """Sends an answer's head, and ends it there: the server tells whoever still writes that its
    client is gone."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b""})
