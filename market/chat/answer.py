"""The answer to a chat as its model means it: text, and calls of tools."""

from collections.abc import Collection
from dataclasses import dataclass, field

from market.catalog.tool_call_style import ToolCallStyle
from market.jobs.structured_output.tool_call_parser import ContentDelta, Delta, ToolCallParser


@dataclass(slots=True)
class ToolCall:
    """``id``: of the call, by which its result is sent."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """What a reader has read so far."""

    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        if isinstance(delta, ContentDelta):
            self.content += delta.text
        elif delta.name is not None:
            self.tool_calls.append(ToolCall(delta.id or "", delta.name, delta.arguments))
        else:
            self.tool_calls[delta.index].arguments += delta.arguments


class AnswerReader:
    """Reads the text of one answer, piece by piece.

    Args:
        style: How the model writes calls; none if it writes none.
        functions: Names that the answer may call; with none, all is text.
        request_id: The job's.
    """

    def __init__(
        self, style: ToolCallStyle | None, functions: Collection[str], request_id: str
    ) -> None:
        self._parser = ToolCallParser(style, functions, request_id) if style and functions else None
        self.answer = Answer()

    def feed(self, text: str) -> list[Delta]:
        """What the next piece of text shows for certain."""
        if self._parser is None:
            return self._noted([ContentDelta(text)] if text else [])
        return self._noted(self._parser.feed(text))

    def finish(self) -> list[Delta]:
        """The rest, once no more text comes."""
        return self._noted([] if self._parser is None else self._parser.finish())

    def _noted(self, deltas: list[Delta]) -> list[Delta]:
        for delta in deltas:
            self.answer.add(delta)
        return deltas
