"""Errors as OpenAI's clients read them: the member ``error`` of a problem document."""

from typing import Any

from market.errors import InvalidRequest
from mesh.errors import MeshError

PREFIX = "/v1/"
"""Paths whose answers are OpenAI's."""

SERVED = (
    "Of OpenAI's API, models, chat completions, completions and responses are served: text alone, "
    "and no embeddings, images, audio, files or assistants."
)

CODES = {
    "context_exceeded": "context_length_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "token_invalid": "invalid_api_key",
    "insufficient_balance": "insufficient_quota",
    "spending_cap_exceeded": "insufficient_quota",
}
"""Ours, and what OpenAI calls them."""

TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""By HTTP status; those below 500 that are not listed are invalid requests."""


def status_of(error: MeshError) -> int:
    """OpenAI answers 400 to what is wrong with a request, where ours is 422."""
    return 400 if error.status == 422 else error.status


def openai_error(error: MeshError) -> dict[str, Any]:
    """The error in OpenAI's form."""
    other = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "message": error.detail,
        "type": TYPES.get(error.status, other),
        "param": error.param if isinstance(error, InvalidRequest) else None,
        "code": CODES.get(error.code, error.code),
    }
