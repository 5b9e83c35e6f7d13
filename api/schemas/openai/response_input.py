"""Items of a response's input, and the chat that they are."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, StringConstraints, Tag

from api.schemas.openai.messages import ChatMessage, Content, Lenient, parsed_arguments

CallId = Annotated[str, StringConstraints(max_length=256)]


class MessageItem(Lenient):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None


class FunctionCallItem(Lenient):
    type: Literal["function_call"]
    call_id: CallId
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    arguments: str


class FunctionOutputItem(Lenient):
    type: Literal["function_call_output"]
    call_id: CallId
    output: Content = None


class ReasoningItem(Lenient):
    """Of an earlier response; it is not shown to the model again."""

    type: Literal["reasoning"]


def _kind(item: Any) -> str | None:
    """The kind of an item, which messages need not name."""
    if isinstance(item, dict):
        return str(item.get("type", "message"))
    return getattr(item, "type", None)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


def chat_messages(instructions: str | None, items: Sequence[Any]) -> list[dict[str, Any]]:
    """The chat that instructions and items are, as chat templates read it. Calls that follow each
    other, or a text of the assistant's, are one message.

    Raises:
        InvalidRequest: a call's arguments are no JSON object, or a message has nothing in it.
    """
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for number, item in enumerate(items):
        if isinstance(item, MessageItem):
            messages.append(
                ChatMessage(role=item.role, content=item.content).for_template(f"input[{number}]")
            )
        elif isinstance(item, FunctionCallItem):
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(_call(item, number))
        elif isinstance(item, FunctionOutputItem):
            messages.append(
                {"role": "tool", "tool_call_id": item.call_id, "content": item.output or ""}
            )
    return messages


def _call(item: FunctionCallItem, number: int) -> dict[str, Any]:
    arguments = parsed_arguments(item.arguments, f"input[{number}].arguments")
    return {
        "id": item.call_id,
        "type": "function",
        "function": {"name": item.name, "arguments": arguments},
    }
