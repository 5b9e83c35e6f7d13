"""What each answer says of the limits that its request was counted by: the headers `RateLimit` and
`RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10), and those of OpenAI's."""

from collections.abc import Iterator, Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.rate_limits import Window, windows

HEADERS = (
    "RateLimit",
    "RateLimit-Policy",
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
)


class RateLimitHeaders:
    """Adds the headers to every answer whose request was counted, also to one that refuses it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        met: list[Window] = []
        token = windows.set(met)

        async def send_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and met:
                MutableHeaders(scope=message).update(dict(zip(HEADERS, _values(met), strict=True)))
            await send(message)

        try:
            await self._app(scope, receive, send_limits)
        finally:
            windows.reset(token)


def _values(met: Sequence[Window]) -> Iterator[str]:
    """All windows as lists of structured fields (RFC 9651); and the one that ends first."""
    yield ", ".join(f'"{each.policy}";r={each.remaining};t={each.reset}' for each in met)
    yield ", ".join(f'"{each.policy}";q={each.limit};w={each.seconds}' for each in met)
    tightest = min(met, key=lambda each: each.remaining)
    yield str(tightest.limit)
    yield str(tightest.remaining)
    yield f"{tightest.reset}s"
