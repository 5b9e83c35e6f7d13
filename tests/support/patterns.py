"""Every regular expression that stands in our packages, found by walking their syntax trees."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

REPOSITORY = Path(__file__).parents[2]

PACKAGES = ("api", "cli", "discovery", "market", "mesh", "node_runner", "stack", "workers")

FUNCTIONS = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall"}
FUNCTIONS |= {"finditer"}

REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """``place``: file and line. ``text``: with 1 for each value that is put in."""

    place: str
    text: str


@cache
def sources() -> list[tuple[str, ast.Module]]:
    """The files of our packages, by their path in the repository."""
    return [
        (str(file.relative_to(REPOSITORY)), ast.parse(file.read_text()))
        for package in PACKAGES
        for file in sorted((REPOSITORY / package).rglob("*.py"))
    ]


def patterns() -> list[Pattern]:
    """Whatever is given to a function of ``re``.

    Raises:
        ValueError: a pattern is not written where it is used, so that nobody can look at it.
    """
    return [
        Pattern(f"{path}:{node.lineno}", _text(node, path))
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _is_of_re(node.func)
    ]


def nested_repeats(pattern: str) -> bool:
    """Whether a repetition stands within another: what backtracks without end has that, and
    whatever has it can be written otherwise."""
    return _nested(_parser.parse(pattern), within=False)


def _nested(parsed: Any, within: bool) -> bool:
    for operator, argument in parsed:
        if str(operator) in REPEATS:
            _, most, inner = argument
            repeated = most is _constants.MAXREPEAT or most > 1
            if (within and repeated) or _nested(inner, within or repeated):
                return True
        elif any(_nested(inner, within) for inner in _inner(argument)):
            return True
    return False


def _inner(argument: Any) -> Iterator[Any]:
    """The patterns within an operator's argument."""
    if isinstance(argument, _parser.SubPattern):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for each in argument:
            yield from _inner(each)


def _is_of_re(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
        and function.attr in FUNCTIONS
    )


def _text(call: ast.Call, path: str) -> str:
    given = call.args[0]
    if isinstance(given, ast.Constant) and isinstance(given.value, str):
        text = given.value
    elif isinstance(given, ast.JoinedStr):
        text = "".join(
            str(part.value) if isinstance(part, ast.Constant) else "1" for part in given.values
        )
    else:
        raise ValueError(f"{path}:{call.lineno}: write the pattern in the call")
    re.compile(text)
    return text
