"""Grammars of answers that call tools, in the form that the model was trained to write.

Where calls begin with a token of their own, anything may stand outside of calls, as without a
grammar: the grammar takes nothing from a model until it opens a call, and then leaves nothing to
parse that is not a call. Where calls are written as text, text outside of them is any text that
does not open one.
"""

import json

from market.catalog.tool_call_style import Marker, ToolCallForm, ToolCallStyle
from market.errors import InvalidRequest
from market.jobs.structured_output.tools import CODE, Function, ToolChoice
from mesh.wire.limits import MAX_GRAMMAR

_TEXT = "TEXT: /(?s:.*)/"

_MORE_BLOCKS = ' ("\\n" block)*'
_MORE_CALLS = ' (", " call)*'


def tool_grammar(style: ToolCallStyle, choice: ToolChoice, *, response_rule: str = "") -> str:
    """What an answer has to follow; empty if it has no tools and is free.

    Args:
        style: The model's.
        choice: The functions, and whether one must be called.
        response_rule: What an answer without calls has to follow
            (:func:`market.jobs.structured_output.response_format.response_rule`); empty if it is
            free.

    Raises:
        InvalidRequest: ``tools_invalid``: the tools are too long, all together, or cannot go with
            a ``response_format`` at this model.
    """
    if not choice.functions:
        return response_rule and f"start: {response_rule}"
    match style.form:
        case ToolCallForm.HERMES:
            rules = _hermes(style, choice, response_rule)
        case ToolCallForm.LLAMA:
            rules = _llama(style, choice, response_rule)
        case ToolCallForm.MISTRAL:
            rules = _mistral(style, choice, response_rule)
    calls = " | ".join(f"call_{index}" for index in range(len(choice.functions)))
    each = [_call(style, index, each) for index, each in enumerate(choice.functions)]
    grammar = "\n".join([*rules, f"call: {calls}", *each])
    if len(grammar) > MAX_GRAMMAR:
        reason = f"with their schemas they have more than {MAX_GRAMMAR} characters; send fewer."
        raise InvalidRequest(f"/tools: {reason}", code=CODE, param="tools")
    return grammar


def _hermes(style: ToolCallStyle, choice: ToolChoice, response_rule: str) -> list[str]:
    closing = _marker(style.closing)
    inner = f'"\\n" call "\\n" {closing}'
    block = f"block: {_marker(style.opening)} {inner}"
    blocks = "block" if choice.single else f"block{_MORE_BLOCKS}"
    if choice.required:
        return [f"start: {blocks}", block]
    if response_rule:
        return [f"start: {blocks} | response", f"response: {response_rule}", block]
    if style.opening.token_id is not None:
        free = f"free: {_other_tokens(style)}*"
        calls = "block?" if choice.single else "(block free)*"
        return [f"start: free {calls}", free, block]
    head = f"head[lazy]: TEXT {json.dumps(style.opening.text)}"
    if choice.single:
        return [f"start: head {inner} | TEXT", head, _without(style.opening.text)]
    return [f"start: (head {inner})* TEXT", head, _TEXT]


def _llama(style: ToolCallStyle, choice: ToolChoice, response_rule: str) -> list[str]:
    """One call: the models of this form were trained on no more."""
    opened = "call" if style.opening.token_id is None else f"{_marker(style.opening)}? call"
    if choice.required:
        return [f"start: {opened}"]
    if response_rule and style.opening.token_id is None:
        reason = "this model's calls cannot be told from a response_format; leave one of them out."
        raise InvalidRequest(f"/tools: {reason}", code=CODE, param="tools")
    if response_rule:
        opened = f"{_marker(style.opening)} call"
        return [f"start: {opened} | response", f"response: {response_rule}"]
    return [f"start: {opened} | TEXT", 'TEXT: /(?s:.*)/ & ~/\\{"name": "(?s:.*)/']


def _mistral(style: ToolCallStyle, choice: ToolChoice, response_rule: str) -> list[str]:
    listed = f'" "? "[" call{"" if choice.single else _MORE_CALLS} "]"'
    block = f"block: {_marker(style.opening)} {listed}"
    if choice.required:
        return ["start: block", block]
    if response_rule:
        return ["start: block | response", f"response: {response_rule}", block]
    if style.opening.token_id is not None:
        return ["start: free block?", f"free: {_other_tokens(style)}*", block]
    head = f"head[lazy]: TEXT {json.dumps(style.opening.text)}"
    return [f"start: head {listed} | TEXT", head, _without(style.opening.text)]


def _call(style: ToolCallStyle, index: int, function: Function) -> str:
    """The name is one terminal with what begins a call, so that a text which begins in the same
    way is told from it by its characters."""
    begin = f'{{"name": "{function.name}", "{style.arguments}": '
    return f'call_{index}: {json.dumps(begin)} %json {function.arguments} "}}"'


def _marker(marker: Marker) -> str:
    return json.dumps(marker.text) if marker.token_id is None else f"<[{marker.token_id}]>"


def _other_tokens(style: ToolCallStyle) -> str:
    """All tokens of the vocabulary but the one that opens calls."""
    opening = style.opening.token_id or 0
    ranges = [(0, opening - 1), (opening + 1, style.vocabulary - 1)]
    return f"<[{','.join(f'{first}-{last}' for first, last in ranges if first <= last)}]>"


def _without(text: str) -> str:
    escaped = "".join(f"\\x{ord(character):02x}" for character in text)
    return f"TEXT: /(?s:.*)/ & ~/(?s:.*){escaped}(?s:.*)/"
