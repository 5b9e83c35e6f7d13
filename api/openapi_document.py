"""The OpenAPI document, with what the framework does not know of answers and of logins."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI

from api.http import problem_details

DEVICE_PATH = "/api/machines/device"
TOKEN_PATH = "/api/machines/token"

MACHINE_LOGIN = {
    "type": "oauth2",
    "description": "Where a machine gets its bearer token (RFC 8628).",
    "flows": {
        # A field of OpenAPI 3.2, and in 3.1 an extension.
        "x-deviceAuthorization": {
            "deviceAuthorizationUrl": DEVICE_PATH,
            "tokenUrl": TOKEN_PATH,
            "scopes": {},
        }
    },
}


def install(app: FastAPI) -> None:
    """Let the application complete its document."""
    app.openapi = partial(_completed, app.openapi)  # type: ignore[method-assign]


def _completed(made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = _with_whole_numbers(made())
    for operations in document["paths"].values():
        for operation in operations.values():
            _name_media_type_of_problems(operation["responses"])
    if TOKEN_PATH in document["paths"]:
        document["components"]["securitySchemes"]["MachineLogin"] = MACHINE_LOGIN
    return document


def _with_whole_numbers(part: Any) -> Any:
    """The framework makes all limits floats, and 2**63 as one is read as another number."""
    if isinstance(part, dict):
        return {name: _with_whole_numbers(value) for name, value in part.items()}
    if isinstance(part, list):
        return [_with_whole_numbers(value) for value in part]
    return int(part) if isinstance(part, float) and part.is_integer() else part


def _name_media_type_of_problems(responses: dict[str, Any]) -> None:
    for status in map(str, problem_details.RESPONSES):
        content = responses[status]["content"]
        if "application/json" in content:
            content[problem_details.MEDIA_TYPE] = content.pop("application/json")
