"""OpenAI's response_format becomes a grammar, or an error that says where it is wrong."""

from typing import Any

import pytest
from llguidance import LLMatcher

from market.errors import InvalidRequest
from market.jobs.structured_output.response_format import response_grammar


def strict(schema: object, **members: object) -> dict[str, Any]:
    named = {"name": "answer", "strict": True, "schema": schema} | members
    return {"type": "json_schema", "json_schema": named}


def refusal(response_format: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as raised:
        response_grammar(response_format)
    assert raised.value.code == "response_format_invalid"
    assert raised.value.param == "response_format"
    return raised.value.detail


@pytest.mark.parametrize("free", [None, {"type": "text"}])
def test_text_is_free(free: dict[str, Any] | None) -> None:
    assert response_grammar(free) == ""


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        strict({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        strict({"$ref": "#/$defs/node", "$defs": {"node": {"items": {"$ref": "#/$defs/node"}}}}),
        strict({"type": "number", "multipleOf": 0.25}),
        strict({"not": {"type": "string"}, "format": "colour"}, strict=False),
    ],
)
def test_what_can_be_followed_is_a_grammar(response_format: dict[str, Any]) -> None:
    assert LLMatcher.validate_grammar(response_grammar(response_format)) == ""


@pytest.mark.parametrize(
    ("schema", "place", "reason"),
    [
        ({"properties": {"a": {"items": {"type": "strin"}}}}, "/properties/a/items", "strin"),
        ({"properties": {"a/b~": {"not": {}}}}, "/properties/a~1b~0", '"not"'),
        ({"anyOf": [{"type": "null"}, {"if": {}, "then": {}}]}, "/anyOf/1", '"if", "then"'),
        ({"items": {"type": "string", "format": "colour"}}, "/items", "colour"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"pattern": "(?=a)"}}}, "/$defs/x", "look-around"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "/properties/a", "does not exist"),
        ({"properties": {"a": 7}}, "/properties/a", "an object, true or false"),
        ({"oneOf": [{"type": "string"}, {"minLength": 4}]}, "", "anyOf"),
        ({"multipleOf": 99999999}, "/multipleOf", "10000"),
        ({"pattern": "a" * 2000}, "/pattern", "1024"),
        ({"minLength": 5, "maxLength": 2, "type": "string"}, "", "minLength"),
        ({"const": "\ud800"}, "", "hex escape"),
        (["string"], "", "is an object"),
    ],
)
def test_an_error_names_the_place(schema: object, place: str, reason: str) -> None:
    detail = refusal(strict(schema))
    assert detail.startswith(f"/response_format/json_schema/schema{place}")
    assert reason in detail


@pytest.mark.parametrize(
    ("response_format", "place"),
    [
        ({"type": "xml"}, "/response_format/type"),
        ({"type": "json_schema"}, "/response_format/json_schema"),
        (strict({}, name="a b"), "/response_format/json_schema/name"),
        (strict(None), "/response_format/json_schema/schema"),
        (strict({}, strict="yes"), "/response_format/json_schema/strict"),
    ],
)
def test_the_rest_of_the_format_is_checked(response_format: dict[str, Any], place: str) -> None:
    assert refusal(response_format).startswith(f"{place}:")


def test_a_schema_cannot_set_the_librarys_options() -> None:
    own = {"type": "object", "x-guidance": {"whitespace_flexible": True, "lenient": True}}
    assert response_grammar(strict(own)) == response_grammar(strict({"type": "object"}))
