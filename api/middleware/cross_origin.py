"""Cross-origin requests (CORS): pages of other origins that may call the API from a browser."""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from api.http.errors import PreflightRefused
from api.http.problem_details import render
from api.middleware.rate_limit_headers import HEADERS as OF_RATE_LIMITS

METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
"""All that the routes have."""

REQUEST_HEADERS = ("*",)
"""Any: each client has some of its own, OpenAI's more with each release (`X-Stainless-...`,
`OpenAI-Beta`), and what a page sends is nothing that anybody could not send."""

ANSWER_HEADERS = (
    "Allow",
    "Content-Disposition",
    "Date",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Job-Ids",
    "X-Request-Id",
    "X-Should-Retry",
    *OF_RATE_LIMITS,
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
    return _CrossOrigin(
        app,
        allow_origins=["*"] if "*" in origins else [],
        allow_origin_regex="|".join(map(_pattern, origins)),
        allow_methods=METHODS,
        allow_headers=REQUEST_HEADERS,
        expose_headers=ANSWER_HEADERS,
    )


class _CrossOrigin(CORSMiddleware):
    """Whose refusals are problem documents, as all others."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether a page may send a request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < PreflightRefused.status:
            return answer
        reason = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        refused = PreflightRefused(
            f"Pages of other origins may not ask this; not allowed: {reason}."
        )
        refusal = render(refused, "")
        for name in ("access-control-allow-origin", "vary"):
            if name in answer.headers:
                refusal.headers[name] = answer.headers[name]
        return refusal


def _pattern(origin: str) -> str:
    return re.escape(origin).replace(r":\*", r"(:\d{1,5})?")
