"""Calls are read of a text in pieces, however it is cut, and what is no call stays content."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.catalog.tool_call_style import Marker, ToolCallForm, ToolCallStyle
from market.jobs.structured_output.tool_call_parser import (
    ContentDelta,
    ToolCallDelta,
    ToolCallParser,
)

MARKERS = {
    ToolCallForm.HERMES: ("<tool_call>", "</tool_call>"),
    ToolCallForm.LLAMA: ("<|python_tag|>", ""),
    ToolCallForm.MISTRAL: ("[TOOL_CALLS]", ""),
}
HERMES, LLAMA, MISTRAL = MARKERS

NASTY = {"a": '}{"<tool_call>\\', "b": [1, {"c": "]"}]}


def style(form: ToolCallForm) -> ToolCallStyle:
    opening, closing = MARKERS[form]
    arguments = "parameters" if form is LLAMA else "arguments"
    return ToolCallStyle(form, arguments, Marker(opening, None), Marker(closing, None), 300)


def read(form: ToolCallForm, pieces: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    """The content, and each call's name and arguments."""
    parser = ToolCallParser(style(form), ["f", "g"], "job")
    content, calls = "", list[tuple[str, str]]()
    for delta in [*(each for piece in pieces for each in parser.feed(piece)), *parser.finish()]:
        match delta:
            case ContentDelta(text):
                content += text
            case ToolCallDelta(index, arguments, _, None):
                calls[index] = (calls[index][0], calls[index][1] + arguments)
            case ToolCallDelta(index, arguments, _, name):
                assert index == len(calls)
                calls.append((name or "", arguments))
    assert parser.calls == len(calls)
    return content, calls


F = '{"name": "f", "arguments": {"a": 1}}'
G = '{"name": "g", "arguments": {}}'
FIRST, SECOND = ("f", '{"a": 1}'), ("g", "{}")


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (HERMES, f"<tool_call>\n{F}\n</tool_call>", "", [FIRST]),
        (HERMES, f"<tool_call>{F}</tool_call>\n<tool_call>{G}</tool_call>", "", [FIRST, SECOND]),
        (HERMES, f"Let me see.\n<tool_call>\n{G}\n</tool_call>\n", "Let me see.", [SECOND]),
        (HERMES, f"a <tool_call>{G}</tool_call> b", "a b", [SECOND]),
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [FIRST]),
        (HERMES, f'<tool_call>{F[:-1]}, "id": "x"}}</tool_call>', "", [FIRST]),
        (HERMES, f"<tool_call>{F}", "", [FIRST]),
        (HERMES, f"<tool_call>{F[:-2]}", "", [("f", '{"a": 1')]),
        (HERMES, f"<tool_call>{F} and so on", "and so on", [FIRST]),
        (HERMES, " a text \n", " a text \n", []),
        (HERMES, "a <tool_cal", "a <tool_cal", []),
        (HERMES, "<tool_call>no</tool_call>", "<tool_call>no</tool_call>", []),
        (HERMES, '<tool_call>{"name": "h", "arguments": {}} x', None, []),
        (HERMES, '<tool_call>{"name": "f", "arguments": 1} x', None, []),
        (HERMES, '<tool_call>{"name": "f", "argum', None, []),
        (HERMES, "<tool_call>{'name': 'f'} x", None, []),
        (HERMES, "<tool_call>{" + "[" * 5000 + "]" * 5000 + "} x", None, []),
        (LLAMA, F.replace("arguments", "parameters"), "", [FIRST]),
        (LLAMA, f"<|python_tag|>{F}", "", [FIRST]),
        (LLAMA, f"{F}; {G}", "", [FIRST, SECOND]),
        (LLAMA, '{"answer": 1} is JSON', '{"answer": 1} is JSON', []),
        (LLAMA, f"text {F}", f"text {F}", []),
        (MISTRAL, f"[TOOL_CALLS] [{F}, {G}]", "", [FIRST, SECOND]),
        (MISTRAL, f"[TOOL_CALLS][{F}]", "", [FIRST]),
        (MISTRAL, f"[{F}]", "", [FIRST]),
        (MISTRAL, f"Let me see. [{F}]", "Let me see.", [FIRST]),
        (MISTRAL, "[a link](there) and [1, 2]", "[a link](there) and [1, 2]", []),
        (MISTRAL, '[{"name": "Ann", "age": 3}]', '[{"name": "Ann", "age": 3}]', []),
    ],
)
def test_calls_are_read_however_a_text_is_cut(
    form: ToolCallForm, text: str, content: str | None, calls: list[tuple[str, str]]
) -> None:
    expected = (text if content is None else content, calls)
    for size in (1, 2, 3, 7, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert read(form, pieces) == expected


@given(
    form=st.sampled_from(list(MARKERS)),
    arguments=st.lists(
        st.dictionaries(
            st.text('a"\\{}[]é'), st.lists(st.text('"\\{}[], '), max_size=3), max_size=2
        ),
        max_size=2,
    ),
    size=st.integers(1, 20),
)
def test_arguments_come_as_they_were_written(
    form: ToolCallForm, arguments: list[dict[str, object]], size: int
) -> None:
    member = "parameters" if form is LLAMA else "arguments"
    calls = [f'{{"name": "f", "{member}": {json.dumps(each)}}}' for each in [*arguments, NASTY]]
    text = {
        HERMES: "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls),
        LLAMA: "; ".join(calls),
        MISTRAL: f"[TOOL_CALLS] [{', '.join(calls)}]",
    }[form]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    expected = [("f", json.dumps(each)) for each in [*arguments, NASTY]]
    assert read(form, pieces) == ("", expected)


PARTS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", F, G, "{", "}", "["]


@given(
    form=st.sampled_from(list(MARKERS)),
    pieces=st.lists(st.sampled_from([*PARTS, "]", '"', "\\", ",", ";", " ", "x", '{"name": "f"'])),
)
def test_any_text_is_read(form: ToolCallForm, pieces: list[str]) -> None:
    cut = read(form, pieces)
    assert cut == read(form, "".join(pieces))
    if not cut[1]:
        assert cut[0] == "".join(pieces)


def test_arguments_come_before_the_call_ends() -> None:
    parser = ToolCallParser(style(HERMES), ["f"], "job")
    deltas = parser.feed('<tool_call>\n{"name": "f", "arguments": {"city": "Ro')
    assert [each.arguments for each in deltas if isinstance(each, ToolCallDelta)] == [
        "",
        '{"city": "Ro',
    ]


def test_who_reads_again_gets_equal_ids() -> None:
    first, again, other = (
        ToolCallParser(style(HERMES), ["f"], job).feed(f"<tool_call>{F}</tool_call>")[0]
        for job in ("job", "job", "other")
    )
    assert isinstance(first, ToolCallDelta)
    assert first == again != other
    assert first.document() == {
        "index": 0,
        "id": first.id,
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }


def test_mistrals_templates_take_its_ids() -> None:
    [begun, *_] = ToolCallParser(style(MISTRAL), ["f"], "job").feed(f"[TOOL_CALLS] [{F}]")
    assert isinstance(begun, ToolCallDelta)
    assert begun.id is not None
    assert len(begun.id) == 9
    assert begun.id.isalnum()
