"""Messages of a chat, as OpenAI's clients send them, and as chat templates read them."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from market.errors import InvalidRequest
from mesh import json_text

MAX_MESSAGES = 2048

MAX_TOOL_CALLS = 128
"""Of one message."""


def _joined_text(value: Any) -> Any:
    """A text, or the text of all parts, a line each."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("string_type", "Input should be a text or a list of parts")
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if kind else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise PydanticCustomError(
                "unserved", "Part {number} is no text; only text is served", {"number": number}
            )
        if not isinstance(text, str):
            raise PydanticCustomError(
                "string_type", "The text of part {number} is missing", {"number": number}
            )
        texts.append(text)
    return "\n".join(texts)


Content = Annotated[
    str | None,
    BeforeValidator(_joined_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "type": {"const": "text"},
                            "text": {"type": "string"},
                        },
                        "required": ["type", "text"],
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]
"""Text, or parts that are text."""


class Lenient(BaseModel):
    """Part of a request that clients send back as they got it, with fields that we do not know."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class CalledFunction(Lenient):
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    arguments: str
    """A JSON object, as text."""


class ToolCall(Lenient):
    id: Annotated[str, StringConstraints(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: Annotated[str, StringConstraints(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    """Of an assistant's message."""
    tool_call_id: Annotated[str, StringConstraints(max_length=256)] | None = None
    """Of a tool's message: the call that it answers."""
    reasoning_content: str | None = None

    def for_template(self, where: str) -> dict[str, Any]:
        """The message as chat templates read it: `developer` is `system` there, and a call's
        arguments are an object.

        Args:
            where: The message is, for an error: ``messages[0]``.

        Raises:
            InvalidRequest: arguments that are no JSON object, or a message without anything in it.
        """
        if self.content is None and not self.tool_calls:
            raise InvalidRequest(
                f"{where}.content: There is neither text nor a tool call in it.",
                code="content_missing",
                param=f"{where}.content",
            )
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
        }
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {
                        "name": call.function.name,
                        "arguments": parsed_arguments(
                            call.function.arguments,
                            f"{where}.tool_calls[{index}].function.arguments",
                        ),
                    },
                }
                for index, call in enumerate(self.tool_calls)
            ]
        return message


def parsed_arguments(text: str, where: str) -> dict[str, Any]:
    """A call's arguments as chat templates read them.

    Args:
        text: JSON, or nothing for none.
        where: Of the field, for an error.

    Raises:
        InvalidRequest: it is no JSON object.
    """
    try:
        arguments = json_text.loads(text) if text.strip() else {}
    except (ValueError, json.JSONDecodeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(
            f"{where}: This has to be a JSON object, as text.",
            code="arguments_malformed",
            param=where,
        )
    return arguments
