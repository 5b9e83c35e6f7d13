"""Every error as `application/problem+json` (RFC 9457) with a stable code; never a stack trace."""

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.errors import (
    BodyTooLarge,
    InvalidRequest,
    MalformedJson,
    MeshError,
    NotFound,
)

log = structlog.get_logger()


class Problem(BaseModel):
    """RFC 9457. ``code`` is stable; ``detail`` is for people and may change."""

    type: str
    title: str
    status: int
    code: str
    detail: str


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "The request is wrong; `code` says how."},
    "5XX": {"model": Problem, "description": "The mesh could not; `Retry-After` says when."},
}

REASONS = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "string_too_short": "empty",
    "string_too_long": "too_long",
    "too_long": "too_long",
    "finite_number": "not_finite",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "enum": "unknown",
    "string_pattern_mismatch": "malformed",
}
"""Pydantic's error types as the second half of our codes: ``temperature_out_of_range``. All that
are not listed are about the value's type."""


def install(app: FastAPI, *, max_body_bytes: int) -> None:
    """Give an application our errors, and its limit on bodies."""
    app.add_exception_handler(MeshError, _mesh_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(_BodyLimit, max_bytes=max_body_bytes)


def render(error: MeshError) -> JSONResponse:
    """The error as a response."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        error.problem(),
        status_code=error.status,
        headers=headers,
        media_type="application/problem+json",
    )


async def _mesh_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, MeshError):
        raise error
    return render(error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return render(_from_validation(error))


def _from_validation(error: RequestValidationError) -> InvalidRequest:
    """The first complaint. The value itself is never repeated: it may be a prompt."""
    first = error.errors()[0]
    kind, where = first["type"], [str(part) for part in first["loc"][1:]]
    if kind == "json_invalid":
        return MalformedJson("The body is not valid JSON.")
    if not where:
        return InvalidRequest("The body has to be a JSON object.", code="body_wrong_type")
    reason = REASONS.get(kind, "wrong_type")
    return InvalidRequest(f"{'.'.join(where)}: {first['msg']}.", code=f"{where[0]}_{reason}")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        return render(NotFound(f"There is nothing at {request.url.path}."))
    problem = MeshError(str(error.detail))
    problem.status, problem.title = error.status_code, str(error.detail)
    problem.code = str(error.detail).lower().replace(" ", "_")
    return render(problem)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    log.error("unhandled_error", path=request.url.path, error=type(error).__name__)
    return render(MeshError("Something went wrong here. It has been logged."))


class _BodyLimit:
    """Refuses a body over the limit before anything parses it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = BodyTooLarge(f"A body may have {self._max} bytes at most.")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max:
            await render(refusal)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max:
                raise refusal
            return message

        await self._app(scope, counted, send)
