"""A stranger sends text on which a regular expression backtracks."""

import ast
import re

import pytest

from tests.support.growth import UNITS, check_linear, repeated
from tests.support.patterns import Pattern, nested_repeats, patterns, sources

ENDS = ("", "!", "\n", "\n\n!", '"', "\x00")

PYDANTIC = ("Field", "StringConstraints", "Query", "Header", "Path", "Body", "Cookie", "constr")


@pytest.fixture(scope="module")
def found() -> list[Pattern]:
    return patterns()


def test_regular_expressions_are_linear(found: list[Pattern]) -> None:
    for pattern in found:
        compiled = re.compile(pattern.text)
        for unit in UNITS:
            for end in ENDS:
                make = repeated(unit, end=end)
                what = f"{pattern.text} of {pattern.place} on {unit!r}"
                check_linear(compiled.fullmatch, make, what)
                check_linear(compiled.match, make, what)


def test_no_repetition_stands_within_another(found: list[Pattern]) -> None:
    assert [pattern for pattern in found if nested_repeats(pattern.text)] == []


def test_regular_expressions_stand_where_they_are_found(found: list[Pattern]) -> None:
    """As `re.compile(...)`: under no other name, and from no other engine."""
    assert len(found) >= 10
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for each in node.names:
                    assert each.name not in ("regex", "fnmatch", "re2"), path
                    assert each.name != "re" or each.asname is None, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in ("re", "regex", "fnmatch"), path
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "re":
                assert node.attr not in ("Scanner", "template"), path


def test_patterns_of_schemas_are_of_the_engine_that_does_not_backtrack() -> None:
    """pydantic-core matches `pattern=` with Rust's regex, whose time is linear by design; so it is
    enough that none asks for Python's."""
    found = 0
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword):
                assert node.arg != "regex_engine", path
                assert node.arg != "regex", path
            if isinstance(node, ast.Constant):
                assert node.value != "regex_engine", path
            if isinstance(node, ast.Call) and any(each.arg == "pattern" for each in node.keywords):
                assert getattr(node.func, "id", "") in PYDANTIC, path
                found += 1
    assert found >= 5


@pytest.mark.parametrize(
    ("pattern", "nested"),
    [
        ("(a+)+", True),
        ("(a|b*)*c", True),
        ("(?:a{1,9}){2,}", True),
        ("((a?b)+c)?(d+)?", False),
        ("a*b*", False),
        ("(?=(a*)+)", True),
    ],
)
def test_what_counts_as_nested(pattern: str, nested: bool) -> None:
    assert nested_repeats(pattern) is nested
