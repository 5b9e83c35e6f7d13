"""JSON schemas of users: whether an edge can follow one, and if not, where it is wrong.

A schema is a stranger's program for the one who compiles it. What llguidance does not bound by
itself is counted before it is given a schema: how deep it calls itself through references, and how
many states a regular expression or a ``multipleOf`` makes.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from market.errors import InvalidRequest
from mesh.grammar import GrammarRefused, compile_grammar
from mesh.wire.limits import MAX_GRAMMAR

MAX_LEVELS = 1000
"""Levels of a schema's JSON, those of each definition that is referred to counted once. The library
calls itself for each: with 8 MB of stack, 2,400 end the process."""

MAX_PATTERN = 1024
"""Characters of one regular expression. A thousand optional parts take 30 ms."""

MAX_PATTERNS = 8192
"""Characters of all regular expressions of a request."""

MAX_MULTIPLES = 10_000
"""All values of ``multipleOf`` of a request, added up, each without its decimal point: one makes as
many states, ten thousand in 80 ms."""

MAX_PROPERTIES = 400
"""Of one object. Where all are optional, any of them may come next: four items of a row each, of
which a parser has 2,000 at most (:data:`mesh.grammar.LIMITS`)."""

MAX_SECONDS = 2.0
"""Of a processor, for the schemas of one request."""

MAX_ERROR_CHARS = 200

JSON_STYLE = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "json_allowed_escapes": None,
}
"""JSON in one line, spaced as Python's ``json.dumps`` and Jinja's ``tojson`` do it, which models
have seen most. As the grammar leaves no choice of spaces, it forces most tokens between values, and
no model can go on with spaces for ever."""

_SUBSCHEMAS = ("additionalProperties", "items")
_LISTS_OF_SUBSCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED_SUBSCHEMAS = ("$defs", "definitions", "patternProperties", "properties")
_DEFINITIONS = ("$defs", "definitions")


class _Bytes:
    """A vocabulary of bytes, for what can be known of a grammar without a model's tokenizer."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"\xff[256]")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


@lru_cache(1)
def _bytes() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))


class SchemaCheck:
    """The check of all schemas of one request, which share its limits. It takes a processor for
    :data:`MAX_SECONDS` and that of one schema more, in which other threads run: call it in one
    thread, in the caller's turn.

    Args:
        code: Of the error.
    """

    def __init__(self, code: str) -> None:
        self._code = code
        self._began = time.thread_time()
        self._patterns = 0
        self._multiples = 0
        self._characters = 0

    def check(self, schema: object, *, strict: bool, where: str) -> str:
        """A schema as a grammar has it behind ``%json``.

        Args:
            schema: Parsed JSON, :data:`mesh.json_text.MAX_DEPTH` deep at most.
            strict: Whether a keyword that cannot be followed is refused. If not, it is left out,
                and ``oneOf`` is read as ``anyOf``.
            where: JSON pointer of the schema in the request.

        Raises:
            InvalidRequest: the schema is none, or not one that can be followed; the error has a
                JSON pointer to the place.
        """
        if not isinstance(schema, dict):
            raise self._wrong(where, "a JSON schema is an object.")
        written = _written(schema, strict)
        self._characters += len(written)
        if self._characters > MAX_GRAMMAR:
            raise self._wrong(where, f"schemas have {MAX_GRAMMAR} characters at most.")
        self._count(schema, where)
        self._check_time(where)
        reason = _reason(schema, strict)
        if reason is not None:
            place, reason = self._place(schema, schema, strict, reason)
            raise self._wrong(f"{where}{place}", _advice(reason, strict))
        return written

    def _count(self, schema: Mapping[str, Any], where: str) -> None:
        """Refuse what would take the library more time or stack than it bounds itself."""
        levels, references = _depth(schema), set[str]()
        for pointer, keyword, value in _members(schema):
            place = f"{where}{pointer}"
            if keyword == "pattern" and isinstance(value, str):
                self._count_pattern(value, place)
            elif keyword == "patternProperties" and isinstance(value, dict):
                for pattern in value:
                    self._count_pattern(pattern, place)
            elif keyword == "properties" and isinstance(value, dict):
                if len(value) > MAX_PROPERTIES:
                    raise self._wrong(place, f"there are {MAX_PROPERTIES} properties at most.")
            elif keyword == "multipleOf" and isinstance(value, int | float):
                self._count_multiple(value, place)
            elif keyword == "$ref" and isinstance(value, str):
                references.add(value)
        levels += sum(_depth(_target(schema, reference)) for reference in references)
        if levels > MAX_LEVELS:
            raise self._wrong(where, f"with its $refs it is more than {MAX_LEVELS} levels deep.")

    def _count_pattern(self, pattern: str, place: str) -> None:
        self._patterns += len(pattern)
        if len(pattern) > MAX_PATTERN or self._patterns > MAX_PATTERNS:
            raise self._wrong(
                place,
                f"a regular expression has {MAX_PATTERN} characters at most, and all together have "
                f"{MAX_PATTERNS}.",
            )

    def _count_multiple(self, value: float, place: str) -> None:
        self._multiples += _without_point(value)
        if self._multiples > MAX_MULTIPLES:
            raise self._wrong(
                place,
                f"multipleOf is {MAX_MULTIPLES} at most without its decimal point, and so are all "
                "together.",
            )

    def _check_time(self, place: str) -> None:
        if time.thread_time() - self._began > MAX_SECONDS:
            raise self._wrong(place, "the schemas take too long to check; make them simpler.")

    def _place(
        self, schema: Mapping[str, Any], root: Mapping[str, Any], strict: bool, reason: str
    ) -> tuple[str, str]:
        """JSON pointer, from ``schema`` on, of the innermost schema that is wrong by itself, and
        why; of one around it, where looking takes too long."""
        definitions = {name: root[name] for name in _DEFINITIONS if name in root}
        for pointer, child in _children(schema):
            if time.thread_time() - self._began > MAX_SECONDS:
                break
            if isinstance(child, dict):
                inner = _reason(definitions | child, strict)
                if inner is not None:
                    place, innermost = self._place(child, root, strict, inner)
                    return pointer + place, innermost
            elif not isinstance(child, bool):
                return pointer, "a JSON schema is an object, true or false"
        return "", reason

    def _wrong(self, place: str, reason: str) -> InvalidRequest:
        return InvalidRequest(f"{place}: {reason}", code=self._code, param=place.split("/")[1])


def _written(schema: Mapping[str, Any], strict: bool) -> str:
    """With options of ours, whatever a user's schema has in their place."""
    options = JSON_STYLE | {"lenient": not strict, "coerce_one_of": not strict}
    return json.dumps(dict(schema) | {"x-guidance": options})


def _reason(schema: Mapping[str, Any], strict: bool) -> str | None:
    """Why a schema cannot be followed; none if it can."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(_written(schema, strict))
        matcher = compile_grammar(_bytes(), grammar)
    except (ValueError, GrammarRefused) as error:
        return str(error)
    matcher.compute_bitmask()  # some limits are those of a step
    return matcher.get_error() if matcher.is_error() else None


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The schemas right within one, each with its JSON pointer."""
    for keyword, value in sorted(schema.items(), key=lambda member: member[0] not in _DEFINITIONS):
        if keyword in _SUBSCHEMAS:
            yield f"/{keyword}", value
        elif keyword in _LISTS_OF_SUBSCHEMAS and isinstance(value, list):
            yield from ((f"/{keyword}/{index}", each) for index, each in enumerate(value))
        elif keyword in _NAMED_SUBSCHEMAS and isinstance(value, dict):
            yield from ((f"/{keyword}/{_escaped(name)}", each) for name, each in value.items())


def _advice(reason: str, strict: bool) -> str:
    """What to change, by what the library says."""
    listed = re.match(r"Unimplemented keys: \[(.*)\]$", reason)
    if listed:
        advice = "leave them out, or set strict to false, and they are not enforced."
        return f"the keywords {listed[1]} cannot be followed: {advice}"
    if reason.startswith("oneOf"):
        return "oneOf can be followed only where no two of its schemas overlap; use anyOf."
    if reason.startswith("Unknown format") and strict:
        return f"{reason}: leave it out, or set strict to false."
    lines = [line.strip() for line in reason.splitlines()]
    shown = lines[-1] if "regex parse error:" in lines else lines[0]
    return f"the schema cannot be followed: {shown[:MAX_ERROR_CHARS]}"


def _members(value: object) -> Iterator[tuple[str, str, object]]:
    """Each member of each object in a JSON value, with its JSON pointer."""
    waiting = [("", value)]
    while waiting:
        pointer, value = waiting.pop()
        if isinstance(value, dict):
            for name, member in value.items():
                place = f"{pointer}/{_escaped(name)}"
                yield place, name, member
                waiting.append((place, member))
        elif isinstance(value, list):
            waiting += [(f"{pointer}/{index}", each) for index, each in enumerate(value)]


def _without_point(value: float) -> int:
    """A number's digits: 25 of 0.25, and of 25."""
    number = Decimal(repr(value + 0)).normalize()
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int):
        return 0  # not a number: the library refuses it
    return abs(int(number.scaleb(-min(exponent, 0))))


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 1


def _target(schema: Mapping[str, Any], reference: str) -> object:
    """What a reference within the schema names; all of it, where it names that by other means than
    a JSON pointer."""
    target: Any = schema
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and name in target:
            target = target[name]
        elif isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        else:
            return schema
    return target


def _escaped(name: str) -> str:
    """A name in a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
