"""JSON of strangers."""

import json
import sys
from collections.abc import Iterator

import pytest

from mesh.json_text import MAX_DEPTH, MalformedJson, check, loads


@pytest.fixture(autouse=True)
def _no_limit_of_the_interpreter() -> Iterator[None]:
    """As a library may raise it: then what is nested without end ends the process."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    yield
    sys.setrecursionlimit(before)


DEEP = 100_000

TOO_DEEP = {
    "arrays": "[" * DEEP,
    "objects": '{"a":' * DEEP,
    "arrays that end": "[" * DEEP + "]" * DEEP,
    "one more than may be": "[" * (MAX_DEPTH + 1),
    "after texts": '["\\"[", "]\\\\", "\\\\\\"]", ' + "[" * DEEP,
    "after a text of brackets": '["' + "]" * DEEP + '", ' + "[" * DEEP,
    "after others": "[" + "[]," * 100 + "[" * DEEP,
    "behind a quote of another encoding": ('["\\"", ' + "[" * DEEP).encode("utf-16"),
    "in UTF-32": ("[" * DEEP).encode("utf-32-le"),
}


@pytest.mark.parametrize("content", TOO_DEEP.values(), ids=TOO_DEEP)
def test_too_deep(content: str | bytes) -> None:
    with pytest.raises(MalformedJson):
        loads(content)


VALUES = [
    "[" * MAX_DEPTH + "]" * MAX_DEPTH,
    json.dumps(["[" * DEEP, "{" * DEEP, '"' * DEEP, "\\" * DEEP]),
    json.dumps({'"[\\': ["\\" * number + "[" * 99 for number in range(9)]}),
    json.dumps([[]] * 10_000),
    "0",
]


@pytest.mark.parametrize("content", VALUES, ids=range(len(VALUES)))
def test_whatever_is_not_too_deep(content: str) -> None:
    assert loads(content) == json.loads(content)
    assert loads(content.encode()) == json.loads(content)
    check(bytearray(content.encode()))


@pytest.mark.parametrize("content", ["", "{", '["a]', "]" * DEEP, '"\\ud800', "\ud800", "9" * 5000])
def test_what_is_not_json(content: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(content)


@pytest.mark.parametrize("part", ["[],", '{"a":[]},', "{},"])
def test_more_parts_than_it_may_have(part: str) -> None:
    few, many = (f"[{part * times}0]".encode() for times in (300, 1001))
    check(few, max_brackets=1000)
    with pytest.raises(MalformedJson, match="1000 arrays"):
        check(many, max_brackets=1000)


def test_brackets_in_a_text_are_no_parts() -> None:
    check(json.dumps({"prompt": '[{"\\' * 10_000}).encode(), max_brackets=1000)
