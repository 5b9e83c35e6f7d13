"""OpenAI's ``response_format`` as a grammar."""

import re
from collections.abc import Mapping
from typing import Any

from market.errors import InvalidRequest
from market.jobs.structured_output.json_schema import SchemaCheck

CODE = "response_format_invalid"

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""Names of schemas and functions."""

_ANY_OBJECT = {"type": "object"}


def response_grammar(response_format: Mapping[str, Any] | None) -> str:
    """What an answer has to follow; empty if it is free.

    ``json_object``: any JSON object. ``json_schema``: JSON that the schema is true of; with
    ``strict`` exactly, else as far as its keywords can be followed. A costly schema takes a
    processor for half a second, in which other threads run: call this in a thread.

    Args:
        response_format: As OpenAI's clients send it, parsed.

    Raises:
        InvalidRequest: ``response_format_invalid``; the error has a JSON pointer to the place.
    """
    rule = response_rule(response_format)
    return rule and f"start: {rule}"


def response_rule(response_format: Mapping[str, Any] | None) -> str:
    """The format as the right-hand side of a rule of a grammar; empty if the answer is free.

    Raises:
        InvalidRequest: ``response_format_invalid``.
    """
    where = "/response_format"
    kind = "text" if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return ""
    if kind == "json_object":
        return f"%json {SchemaCheck(CODE).check(_ANY_OBJECT, strict=True, where=where)}"
    if kind != "json_schema":
        raise _wrong(f"{where}/type", "use text, json_object or json_schema.")
    named = response_format.get("json_schema")
    where = f"{where}/json_schema"
    if not isinstance(named, Mapping):
        raise _wrong(where, "it is an object with name and schema.")
    if not isinstance(name := named.get("name"), str) or not NAME.fullmatch(name):
        raise _wrong(f"{where}/name", "it has 1 to 64 letters, digits, _, . and -.")
    strict = is_strict(named, where, CODE)
    schema = named.get("schema")
    if schema is None:
        raise _wrong(f"{where}/schema", "give the schema, or use json_object.")
    return f"%json {SchemaCheck(CODE).check(schema, strict=strict, where=f'{where}/schema')}"


def is_strict(described: Mapping[str, Any], where: str, code: str) -> bool:
    """Whether a schema is to be followed exactly; if it is not said, it is not.

    Raises:
        InvalidRequest: it is neither true nor false.
    """
    strict = described.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequest(
            f"{where}/strict: use true or false.", code=code, param=where.split("/")[1]
        )
    return bool(strict)


def _wrong(place: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{place}: {reason}", code=CODE, param="response_format")
