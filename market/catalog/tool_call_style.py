"""How a model writes calls of tools, by what its chat template tells it."""

import re
from dataclasses import dataclass
from enum import StrEnum

from tokenizers import Tokenizer


class ToolCallForm(StrEnum):
    """Forms of calls, by the family of models that made each known.

    ``HERMES``: each call an object between tags, anywhere in the text; Qwen writes the same.
    ``LLAMA``: an object in place of a text, after a special token or none.
    ``MISTRAL``: a list of objects after a special token.
    """

    HERMES = "hermes"
    LLAMA = "llama"
    MISTRAL = "mistral"


@dataclass(frozen=True, slots=True)
class Marker:
    """What stands before calls, or behind one. ``token_id``: its own in the model's vocabulary;
    none if it is written by several tokens, or not at all."""

    text: str
    token_id: int | None


@dataclass(frozen=True, slots=True)
class ToolCallStyle:
    """How one model writes calls. ``arguments``: the member of a call that has them.
    ``vocabulary``: tokens that its tokenizer knows."""

    form: ToolCallForm
    arguments: str
    opening: Marker
    closing: Marker
    vocabulary: int


_LLAMA_JSON = re.compile(r'"name": function name, "parameters"')
"""Llama's own words for what a call looks like. From 3.2 on, its templates have nothing else."""

_OTHER_FORMS = ("<function=", "<arg_key>", "[ARGS]", "[CALL_ID]")
"""Templates with these use the same tags around calls that are no JSON objects."""


def tool_call_style(chat_template: str, tokenizer: Tokenizer) -> ToolCallStyle | None:
    """The style that a chat template shows; none if the template takes no tools, or shows calls in
    a form that is not read here.

    Args:
        chat_template: Its text, in Jinja; the one for requests with tools, if there are several.
        tokenizer: The model's.
    """
    if "tools" not in chat_template or any(form in chat_template for form in _OTHER_FORMS):
        return None
    if "<tool_call>" in chat_template:
        return _style(ToolCallForm.HERMES, "arguments", "<tool_call>", "</tool_call>", tokenizer)
    if "[TOOL_CALLS]" in chat_template:
        return _style(ToolCallForm.MISTRAL, "arguments", "[TOOL_CALLS]", "", tokenizer)
    if "<|python_tag|>" in chat_template or _LLAMA_JSON.search(chat_template):
        return _style(ToolCallForm.LLAMA, "parameters", "<|python_tag|>", "", tokenizer)
    return None


def _style(
    form: ToolCallForm, arguments: str, opening: str, closing: str, tokenizer: Tokenizer
) -> ToolCallStyle:
    return ToolCallStyle(
        form,
        arguments,
        Marker(opening, tokenizer.token_to_id(opening)),
        Marker(closing, tokenizer.token_to_id(closing) if closing else None),
        tokenizer.get_vocab_size(),
    )
