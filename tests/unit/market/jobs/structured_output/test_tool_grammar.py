"""Grammars of answers that call tools let pass what they should, for each form of calls."""

import json
from typing import Any

import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken, Tokenizer

from market.catalog.tool_call_style import ToolCallForm, ToolCallStyle, tool_call_style
from market.errors import InvalidRequest
from market.jobs.structured_output.response_format import response_rule
from market.jobs.structured_output.tool_grammar import tool_grammar
from market.jobs.structured_output.tools import tool_choice
from mesh.grammar import compile_grammar
from tests.support.engine.tokenizers import byte_level

TEMPLATES = {
    ToolCallForm.HERMES: "{{ tools }} <tool_call>",
    ToolCallForm.LLAMA: "{{ tools }} <|python_tag|>",
    ToolCallForm.MISTRAL: "{{ tools }} [TOOL_CALLS]",
}
MARKERS = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"]

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "time", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
NOW = {"type": "function", "function": {"name": "now"}}


class Speaker:
    """A model's vocabulary: with tokens for what stands around calls, or without."""

    def __init__(self, form: ToolCallForm, *, marked: bool) -> None:
        self.tokenizer: Tokenizer = byte_level()
        if marked:
            special = [AddedToken(marker, special=True, normalized=False) for marker in MARKERS]
            self.tokenizer.add_special_tokens(special)
        style = tool_call_style(TEMPLATES[form], self.tokenizer)
        assert style is not None
        self.style: ToolCallStyle = style
        self._vocabulary = LLTokenizer(self.tokenizer.to_str(), eos_token=[2])

    def call(self, name: str, arguments: object) -> str:
        named = f'{{"name": "{name}", "{self.style.arguments}": '
        return f"{named}{json.dumps(arguments)}}}"

    def calls(self, *calls: str) -> str:
        """Calls as the model writes them."""
        opening, closing = self.style.opening.text, self.style.closing.text
        match self.style.form:
            case ToolCallForm.HERMES:
                return "\n".join(f"{opening}\n{call}\n{closing}" for call in calls)
            case ToolCallForm.MISTRAL:
                return f"{opening} [{', '.join(calls)}]"
            case ToolCallForm.LLAMA:
                return calls[0]

    def accepts(self, grammar: str, text: str) -> bool:
        """Whether a text is whole by a grammar."""
        matcher = compile_grammar(self._vocabulary, grammar)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.fixture(params=TEMPLATES)
def form(request: pytest.FixtureRequest) -> ToolCallForm:
    chosen: ToolCallForm = request.param
    return chosen


@pytest.fixture(params=[True, False], ids=["marked", "unmarked"])
def speaker(request: pytest.FixtureRequest, form: ToolCallForm) -> Speaker:
    return Speaker(form, marked=request.param)


def test_with_auto_text_and_calls_may_come(speaker: Speaker) -> None:
    grammar = tool_grammar(speaker.style, tool_choice(TOOLS, "auto"))
    good = speaker.calls(speaker.call("weather", {"city": "Rome"}))
    wrong = speaker.calls(speaker.call("weather", {"city": "Paris"}))
    assert speaker.accepts(grammar, "Just a text, with {brackets}.")
    assert speaker.accepts(grammar, good)
    assert not speaker.accepts(grammar, wrong)
    assert not speaker.accepts(grammar, speaker.calls(speaker.call("other", {})))


def test_a_call_that_must_come_comes_alone(speaker: Speaker) -> None:
    grammar = tool_grammar(speaker.style, tool_choice(TOOLS, "required"))
    assert speaker.accepts(grammar, speaker.calls(speaker.call("time", {"city": "Oslo"})))
    assert speaker.accepts(grammar, speaker.calls(speaker.call("now", {})))
    assert not speaker.accepts(grammar, speaker.calls(speaker.call("now", {"city": "Oslo"})))
    assert not speaker.accepts(grammar, "Just a text.")
    assert not speaker.accepts(grammar, "")


def test_a_function_can_be_named(speaker: Speaker) -> None:
    grammar = tool_grammar(speaker.style, tool_choice(TOOLS, NOW))
    assert speaker.accepts(grammar, speaker.calls(speaker.call("now", {})))
    assert not speaker.accepts(grammar, speaker.calls(speaker.call("time", {"city": "Oslo"})))


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("form", [ToolCallForm.HERMES, ToolCallForm.MISTRAL])
def test_several_calls_come_if_they_may(form: ToolCallForm, marked: bool, choice: str) -> None:
    speaker = Speaker(form, marked=marked)
    two = speaker.calls(speaker.call("now", {}), speaker.call("time", {"city": "Oslo"}))
    several = tool_grammar(speaker.style, tool_choice(TOOLS, choice))
    single = tool_grammar(speaker.style, tool_choice(TOOLS, choice, parallel=False))
    assert speaker.accepts(several, two)
    assert not speaker.accepts(single, two)
    assert speaker.accepts(single, speaker.calls(speaker.call("now", {})))


def test_without_tools_an_answer_is_free(speaker: Speaker) -> None:
    assert tool_grammar(speaker.style, tool_choice(TOOLS, "none")) == ""


def test_an_answer_without_calls_can_have_a_format(form: ToolCallForm) -> None:
    speaker = Speaker(form, marked=True)
    rule = response_rule({"type": "json_object"})
    grammar = tool_grammar(speaker.style, tool_choice(TOOLS, "auto"), response_rule=rule)
    opening = speaker.style.opening.text if form is ToolCallForm.LLAMA else ""
    assert speaker.accepts(grammar, opening + speaker.calls(speaker.call("now", {})))
    assert speaker.accepts(grammar, '{"a": 1}')
    assert not speaker.accepts(grammar, "Just a text.")
    assert not speaker.accepts(grammar, opening + speaker.calls(speaker.call("other", {})))


def test_what_cannot_be_told_from_a_call_is_refused() -> None:
    speaker = Speaker(ToolCallForm.LLAMA, marked=False)
    with pytest.raises(InvalidRequest, match="response_format"):
        tool_grammar(
            speaker.style,
            tool_choice(TOOLS, "auto"),
            response_rule=response_rule({"type": "json_object"}),
        )


def test_other_special_tokens_stay_free() -> None:
    speaker = Speaker(ToolCallForm.HERMES, marked=True)
    grammar = tool_grammar(speaker.style, tool_choice(TOOLS, "auto"))
    assert speaker.accepts(grammar, "<|python_tag|>thinking[TOOL_CALLS]")
