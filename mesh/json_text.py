"""JSON that somebody else wrote: how deep it is nested is looked at before it is parsed.

Python's parser calls itself for what is nested: beyond the interpreter's limit it raises
``RecursionError``, which few callers think of, and where a library has raised that limit, the
process ends. For the rest the parser takes time that grows with the length alone: a number may have
4300 digits.
"""

import json
from itertools import accumulate
from typing import Any

MAX_DEPTH = 64
"""Far beyond any request, configuration or index."""

_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_BRACKETS = bytes(_STEPS)
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


def check(content: bytes | bytearray, max_brackets: int | None = None) -> None:
    """Look at what a parser will be given, in time that grows with its length alone.

    Args:
        content: The text.
        max_brackets: How many arrays and objects it may have, each of which costs a parser far more
            than its two characters; any number if not given.

    Raises:
        MalformedJson: nested deeper than :data:`MAX_DEPTH`, of more parts than it may have, or in
            UTF-16 or UTF-32, which a parser detects by itself.
    """
    if b"\0" in content:
        raise MalformedJson("JSON is UTF-8, and has no NUL.")
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return
    # As far as the text is JSON, every other part between quotes that stand for themselves is
    # outside of strings; from where it is not, the parser reads nothing.
    quotes_alone = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(quotes_alone.split(b'"')[::2])
    brackets = outside.translate(None, delete=_OTHERS)
    if max_brackets is not None and brackets.count(b"[") + brackets.count(b"{") > max_brackets:
        raise MalformedJson(f"JSON has {max_brackets} arrays and objects at most.")
    # No loop of ours: there may be as many brackets as characters.
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise MalformedJson(f"JSON is nested {MAX_DEPTH} deep at most.")
