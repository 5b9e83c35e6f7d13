"""A chat as its model gets it: a prompt, and what the answer has to follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from market.catalog.models import Model
from market.chat.answer import AnswerReader
from market.errors import InvalidRequest
from market.jobs.request import TextPrompt
from market.jobs.structured_output.response_format import response_rule
from market.jobs.structured_output.tool_grammar import tool_grammar
from market.jobs.structured_output.tools import ToolChoice, tool_choice


@dataclass(frozen=True, slots=True)
class Chat:
    """What a request says of a chat, as parsed JSON in the form of OpenAI's chat completions.

    ``messages``: as chat templates read them. ``tool_choice``: none if the request does not say.
    ``parallel``: whether an answer may have several calls.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    parallel: bool = True
    response_format: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """``grammar``: what the answer has to follow; empty if it is free. ``functions``: names that it
    may call."""

    model: Model
    prompt: TextPrompt
    grammar: str
    functions: frozenset[str]

    def reader(self, request_id: str) -> AnswerReader:
        """A reader of one job's answer."""
        return AnswerReader(self.model.tool_call_style, self.functions, request_id)


def prepare(model: Model, chat: Chat) -> PreparedChat:
    """The prompt and the grammar of a chat. A template and schemas that strangers fill may take a
    processor for seconds: call this in a thread, in the caller's turn.

    Raises:
        InvalidRequest: the model does not chat, or not with tools; its template refuses the
            messages; or a schema cannot be followed.
    """
    if model.chat_template is None:
        raise InvalidRequest(
            f"{model.id} has no chat template: it continues texts. Use /v1/completions.",
            code="chat_unsupported",
            param="model",
        )
    rule = response_rule(chat.response_format)
    choice = _tool_choice(model, chat)
    if choice is None or model.tool_call_style is None:
        grammar = rule and f"start: {rule}"
        functions: frozenset[str] = frozenset()
    else:
        grammar = tool_grammar(model.tool_call_style, choice, response_rule=rule)
        functions = frozenset(function.name for function in choice.functions)
    # With the choice "none" the model is shown no tools, as it may not call any.
    tools = chat.tools if functions else None
    text = model.chat_template.render(list(chat.messages), tools=tools)
    return PreparedChat(model, TextPrompt(text, add_special_tokens=False), grammar, functions)


def _tool_choice(model: Model, chat: Chat) -> ToolChoice | None:
    if not chat.tools:
        if chat.tool_choice in (None, "none", "auto"):
            return None
        raise InvalidRequest(
            "tool_choice: There are no tools to choose from.",
            code="tool_choice_unexpected",
            param="tool_choice",
        )
    if model.tool_call_style is None and chat.tool_choice != "none":
        raise InvalidRequest(
            f"tools: {model.id} was not trained to call tools in a form that is read here.",
            code="tools_unsupported",
            param="tools",
        )
    return tool_choice(chat.tools, chat.tool_choice, parallel=chat.parallel)
