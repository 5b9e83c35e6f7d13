"""Every error as `application/problem+json` (RFC 9457) with a stable code; never a stack trace."""

import re
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from api.http.errors import MalformedJson
from api.schemas.openai import errors as openai_errors
from market.errors import InvalidRequest
from market.outages import OUTAGES, unavailable
from mesh.errors import MeshError, NotFound

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"


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

CODE_SUFFIXES = {
    "missing": "missing",
    "string_too_short": "empty",
    "string_too_long": "too_long",
    "too_long": "too_many",
    "too_short": "too_few",
    "finite_number": "not_finite",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "enum": "unknown",
    "string_pattern_mismatch": "malformed",
    "value_error": "malformed",
    "unserved": "unserved",
    "literal_error": "unknown",
    "union_tag_invalid": "unknown",
}
"""Pydantic's error types as the second half of our codes: ``temperature_out_of_range``. All that
are not listed are about the value's type."""


MAX_RETRY_AFTER = 120
"""Seconds in `Retry-After` at most. OpenAI's clients either sleep for however long it says, without
a word to their user, or come back at once where it says more than this. What takes longer is in the
detail, and in `RateLimit`."""

FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
"""What an unknown field has to look like to be repeated in an error."""


def install(app: FastAPI) -> None:
    """Give an application our errors."""
    app.add_exception_handler(MeshError, _mesh_error)
    for outage in OUTAGES:
        app.add_exception_handler(outage, _outage)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unhandled_error)


def render(error: MeshError, path: str) -> JSONResponse:
    """The error as a response to a request of that path. Where paths are OpenAI's, the document is
    one of OpenAI's as well."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(min(error.retry_after, MAX_RETRY_AFTER))
    if error.retry_useless or (error.retry_after or 0) > MAX_RETRY_AFTER:
        headers["X-Should-Retry"] = "false"  # as OpenAI's clients read it
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    problem, status = error.problem(), error.status
    if path.startswith(openai_errors.PREFIX):
        status = openai_errors.status_of(error)
        problem |= {"status": status, "error": openai_errors.openai_error(error)}
    return JSONResponse(
        problem,
        status_code=status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


async def _mesh_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, MeshError):
        raise error
    return render(error, request.url.path)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return render(_from_validation(error), request.url.path)


def _from_validation(error: RequestValidationError) -> InvalidRequest:
    """The first complaint. The value itself is never repeated: it may be a prompt."""
    first = error.errors()[0]
    kind, where = first["type"], [str(part) for part in first["loc"][1:]]
    if kind == "json_invalid":
        return MalformedJson("The body is not valid JSON.")
    if kind == "too_many_fields":
        return InvalidRequest(f"{first['msg']}.", code=kind)
    if not where:
        return InvalidRequest(
            "The body has to be a JSON object, with the header Content-Type: application/json.",
            code="body_wrong_type",
        )
    if kind == "extra_forbidden":
        name = where[-1] if FIELD_NAME.fullmatch(where[-1]) else "A field"
        return InvalidRequest(f"{name}: there is no such field.", code="unknown_field", param=name)
    where[0] = where[0].replace("-", "_")  # a header's name
    reason = CODE_SUFFIXES.get(kind, "wrong_type")
    message = first["msg"].removeprefix("Value error, ")
    place = _place(where)
    return InvalidRequest(f"{place}: {message}.", code=f"{where[0]}_{reason}", param=place)


def _nothing_at(path: str) -> str:
    if path.startswith(openai_errors.PREFIX):
        return f"There is nothing at {path}. {openai_errors.SERVED}"
    return f"There is nothing at {path}."


def _place(where: Sequence[str]) -> str:
    """Where a field is: ``messages[0].content``."""
    return where[0] + "".join(f"[{each}]" if each.isdigit() else f".{each}" for each in where[1:])


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        return render(NotFound(_nothing_at(request.url.path)), request.url.path)
    if error.status_code == 400:  # a body that json.loads refuses in other ways than by its error
        return render(MalformedJson("The body is not valid JSON."), request.url.path)
    problem = MeshError(f"{error.detail}: {request.method} {request.url.path}.")
    problem.status, problem.title = error.status_code, str(error.detail)
    problem.code = str(error.detail).lower().replace(" ", "_")
    response = render(problem, request.url.path)
    response.headers.update(error.headers or {})
    return response


async def _outage(request: Request, error: Exception) -> JSONResponse:
    return render(unavailable(error), request.url.path)


async def _unhandled_error(request: Request, error: Exception) -> JSONResponse:
    log.error("unhandled_error", path=request.url.path, error=type(error).__name__)
    return render(MeshError("Something went wrong here. It has been logged."), request.url.path)
