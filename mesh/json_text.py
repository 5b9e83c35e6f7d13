"""JSON that somebody else wrote: whatever is wrong with it is one exception.

``json.loads`` takes time that grows with the length alone: a number may have 4300 digits, and what
is nested too deep raises ``RecursionError``, which few callers think of.
"""

import json
from typing import Any


def loads(content: str | bytes | bytearray) -> Any:
    """
    Raises:
        ValueError: not JSON, or nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None
