"""Cross-origin requests (CORS): pages of other origins that may call the API from a browser."""

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("GET", "HEAD", "POST", "DELETE")
"""All that the routes have."""

REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "Prefer",
    # An `EventSource` made by `fetch` sends it, and it is no safelisted header.
    "Cache-Control",
)

ANSWER_HEADERS = (
    "Allow",
    "Content-Disposition",
    "Date",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
    # Of a proxy that limits, too.
    "RateLimit",
    "RateLimit-Policy",
)
"""What a page may read beside the safelisted ones."""


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, answering browsers for pages of these origins.

    Without credentials: a browser adds nothing of its own to a request, so a page of another origin
    can do no more than anybody who has the token that it sends.

    Args:
        app: The whole application, with its answers to errors.
        origins: As :class:`market.settings.Settings` has them: ``*``, or some of which the port may
            be ``*``.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=["*"] if "*" in origins else [],
        allow_origin_regex="|".join(map(_pattern, origins)),
        allow_methods=METHODS,
        allow_headers=REQUEST_HEADERS,
        expose_headers=ANSWER_HEADERS,
    )


def _pattern(origin: str) -> str:
    return re.escape(origin).replace(r":\*", r"(:\d{1,5})?")
