"""Answers to chats, as OpenAI's chat completions have them."""

from typing import Any

from market.chat.answer import Answer
from market.jobs.structured_output.tool_call_parser import Delta, ToolCallDelta


def finish_reason(reason: str, answer: Answer) -> str:
    """OpenAI's reason for the end of an answer, by that of its text."""
    return "tool_calls" if reason == "stop" and answer.tool_calls else reason


def message(answer: Answer) -> dict[str, Any]:
    """An answer as a message of a chat completion."""
    document: dict[str, Any] = {
        "role": "assistant",
        "content": answer.content or (None if answer.tool_calls else ""),
        "refusal": None,
    }
    if answer.tool_calls:
        document["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.tool_calls
        ]
    return document


def chunk_delta(delta: Delta) -> dict[str, Any]:
    """A piece of an answer as the delta of a chunk."""
    if isinstance(delta, ToolCallDelta):
        return {"tool_calls": [delta.document()]}
    return {"content": delta.text}
