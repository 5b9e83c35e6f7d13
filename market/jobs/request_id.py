"""What a job is called: it is drawn, never chosen, so that nobody asks for what cannot be there."""

import re
import secrets

_BYTES = 12

_PATTERN = re.compile(rf"req_[0-9a-f]{{{2 * _BYTES}}}")


def new_request_id() -> str:
    """A job's name."""
    return f"req_{secrets.token_hex(_BYTES)}"


def is_request_id(text: str) -> bool:
    """Whether a job could be called so: worth a look into the table."""
    return _PATTERN.fullmatch(text) is not None
