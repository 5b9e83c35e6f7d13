"""JSON that somebody else wrote: how deep it is nested is looked at before it is parsed.

Python's parser calls itself for what is nested: beyond the interpreter's limit it raises
``RecursionError``, which few callers think of, and where a library has raised that limit, the
process ends. For the rest the parser takes time that grows with the length alone: a number may have
4300 digits.
"""

import json
from typing import Any

MAX_DEPTH = 64
"""Far beyond any request, configuration or index."""

_BRACKETS = b"[]{}"
_OTHERS = bytes(set(range(256)) - set(_BRACKETS))


class MalformedJson(ValueError):
    """Nested too deep, or in another encoding than UTF-8."""


def loads(content: str | bytes | bytearray) -> Any:
    """
    Raises:
        ValueError: not JSON, or JSON that :func:`check` refuses.
    """
    check(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return json.loads(content)


def check(content: bytes | bytearray) -> None:
    """Look at what a parser will be given, in time that grows with its length alone.

    Raises:
        MalformedJson: nested deeper than :data:`MAX_DEPTH`, or in UTF-16 or UTF-32, which a parser
            detects by itself.
    """
    if b"\0" in content:
        raise MalformedJson("JSON is UTF-8, and has no NUL.")
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return
    # As far as the text is JSON, every other part between quotes that stand for themselves is
    # outside of strings; from where it is not, the parser reads nothing.
    quotes_alone = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(quotes_alone.split(b'"')[::2])
    depth = 0
    for bracket in outside.translate(None, delete=_OTHERS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise MalformedJson(f"JSON is nested {MAX_DEPTH} deep at most.")
