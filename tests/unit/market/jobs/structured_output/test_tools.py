"""OpenAI's tools and tool_choice: what they allow, and what is wrong with them."""

from typing import Any

import pytest

from market.errors import InvalidRequest
from market.jobs.structured_output.tools import tool_choice


def tool(name: str, **members: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | members}


TOOLS = [tool("a"), tool("b", parameters={"type": "object"}), tool("c")]


@pytest.mark.parametrize(
    ("choice", "parallel", "names", "required", "single"),
    [
        (None, True, ["a", "b", "c"], False, False),
        ("auto", False, ["a", "b", "c"], False, True),
        ("required", True, ["a", "b", "c"], True, False),
        ("none", True, [], False, True),
        ({"type": "function", "function": {"name": "b"}}, True, ["b"], True, True),
        ({"type": "function", "name": "b"}, True, ["b"], True, True),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("c")]}},
            True,
            ["c"],
            False,
            False,
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [tool("c"), tool("a")]},
            True,
            ["c", "a"],
            True,
            False,
        ),
    ],
)
def test_a_choice_is_read(
    choice: Any, parallel: bool, names: list[str], required: bool, single: bool
) -> None:
    read = tool_choice(TOOLS, choice, parallel=parallel)
    assert [function.name for function in read.functions] == names
    assert (read.required, read.single) == (required, single)


@pytest.mark.parametrize(
    ("tools", "choice", "place"),
    [
        ([], "auto", "/tools"),
        ([tool("a")] * 2, "auto", "/tools/1"),
        ([tool(f"f{number}") for number in range(129)], "auto", "/tools"),
        ([{"type": "web_search"}], "auto", "/tools/0/type"),
        ([{"type": "function"}], "auto", "/tools/0/function"),
        ([tool("a b")], "auto", "/tools/0/function/name"),
        ([tool("a", parameters=[])], "auto", "/tools/0/function/parameters"),
        ([tool("a", parameters={"type": "string"})], "auto", "/tools/0/function/parameters"),
        (
            [tool("a"), tool("b", parameters={"properties": {"x": {"type": "strin"}}})],
            "auto",
            "/tools/1/function/parameters/properties/x",
        ),
        (
            [tool("a", strict=True, parameters={"properties": {"x": {"not": {}}}})],
            "auto",
            "/tools/0/function/parameters/properties/x",
        ),
        (TOOLS, "sometimes", "/tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "d"}}, "/tool_choice"),
        (TOOLS, {"type": "function"}, "/tool_choice"),
        (TOOLS, {"type": "web_search"}, "/tool_choice/type"),
        (TOOLS, {"type": "allowed_tools"}, "/tool_choice/allowed_tools"),
        (
            TOOLS,
            {"type": "allowed_tools", "mode": "auto", "tools": []},
            "/tool_choice/allowed_tools/tools",
        ),
    ],
)
def test_an_error_names_the_place(tools: list[dict[str, Any]], choice: Any, place: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        tool_choice(tools, choice)
    assert raised.value.detail.startswith(f"{place}:")
    assert raised.value.code == "tools_invalid"
    assert raised.value.param == place.split("/")[1]


def test_keywords_that_need_not_be_kept_are_left_out() -> None:
    tools = [tool("a", parameters={"properties": {"x": {"not": {"type": "string"}}}})]
    assert tool_choice(tools, "auto").functions[0].name == "a"
