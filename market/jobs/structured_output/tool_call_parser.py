"""Calls of tools in a text that comes in pieces: content, and calls as OpenAI's clients get them.

A call that begins as models write it is read as it comes, arguments and all; one in another form
when it has ended. What cannot be read as a call stays content. Work grows with the length of the
text alone.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from market.catalog.tool_call_style import ToolCallForm, ToolCallStyle
from market.jobs.structured_output.json_scanner import ObjectScanner
from mesh import json_text

MAX_HEAD = 512
"""Characters of a call before its arguments, where it is read as it comes."""

_HEAD = re.compile(
    r'\{\s*"name"\s*:\s*"([a-zA-Z0-9_.-]{1,64})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)

_LIST = '[{"name": "'
"""Opens calls of Mistral's form where the token before them is a special one, which texts do not
show."""

_FIRST = {ToolCallForm.HERMES: "", ToolCallForm.LLAMA: "{", ToolCallForm.MISTRAL: "["}
"""Begins calls without an opening, as the first character of a text."""

_SEPARATORS = {ToolCallForm.HERMES: "", ToolCallForm.LLAMA: ";", ToolCallForm.MISTRAL: ","}
"""Between two calls behind one opening."""

_SPACES = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """The next piece of a message's content."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a call's arguments, which all together are a JSON object. The first one of
    a call has its id and its function's name."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None

    def document(self) -> dict[str, Any]:
        """As a member of ``tool_calls`` in a chunk of OpenAI's."""
        function = {"arguments": self.arguments}
        if self.name is None:
            return {"index": self.index, "function": function}
        function = {"name": self.name} | function
        return {"index": self.index, "id": self.id, "type": "function", "function": function}


Delta = ContentDelta | ToolCallDelta


class _State(Enum):
    BEGIN = auto()
    CONTENT = auto()
    OPENED = auto()
    HEAD = auto()
    ARGUMENTS = auto()
    TAIL = auto()
    WHOLE = auto()
    AFTER_CALL = auto()


class ToolCallParser:
    """Reads one answer. The ids of its calls are made of the job's id, so that who reads the text
    again, or goes on reading it elsewhere, is given equal ones.

    Args:
        style: The model's.
        functions: Names that may be called.
        request_id: The job's.
    """

    def __init__(self, style: ToolCallStyle, functions: Collection[str], request_id: str) -> None:
        self._form = style.form
        self._closing = style.closing.text
        openings = [style.opening.text, *([_LIST] if style.form is ToolCallForm.MISTRAL else [])]
        self._openings = openings
        self._functions = frozenset(functions)
        self._request_id = request_id
        self._state = _State.BEGIN
        self._text, self._at = "", 0
        self._begun: list[str] = []
        """What is content if it turns out to begin no call."""
        self._call: list[str] = []
        """The call that is read when it has ended, as far as it has come."""
        self._spaces: list[str] = []
        """Content if more content follows; nothing around calls."""
        self._scanner = ObjectScanner()
        self._steps: dict[_State, Callable[[], list[Delta]]] = {
            _State.BEGIN: self._begin,
            _State.CONTENT: self._read_content,
            _State.OPENED: self._opened,
            _State.HEAD: self._head,
            _State.ARGUMENTS: self._arguments,
            _State.TAIL: self._tail,
            _State.WHOLE: self._whole,
            _State.AFTER_CALL: self._after_call,
        }
        self.calls = 0
        """How many there were so far."""

    def feed(self, text: str) -> list[Delta]:
        """What the next piece of the text shows for certain."""
        self._text, self._at = self._text[self._at :] + text, 0
        deltas: list[Delta] = []
        while self._at < len(self._text):
            before = self._state, self._at
            deltas += self._steps[self._state]()
            if before == (self._state, self._at):
                break  # the next step needs more text
        return deltas

    def finish(self) -> list[Delta]:
        """The rest, once no more text comes."""
        rest = "".join([*self._begun, *self._call, self._text[self._at :]])
        if self._state in (_State.ARGUMENTS, _State.TAIL):
            return []  # a call without an end
        deltas = self._content(rest)
        return deltas if self.calls else [*deltas, *map(ContentDelta, filter(None, self._spaces))]

    def _begin(self) -> list[Delta]:
        self._spaces.append(self._take_spaces())
        following = self._text[self._at :][: len(self._openings[0])]
        if following and not self._openings[0].startswith(following):
            opens = following[0] == _FIRST[self._form]
            self._state = _State.OPENED if opens else _State.CONTENT
        elif following == self._openings[0]:
            self._state = _State.CONTENT
        return []

    def _read_content(self) -> list[Delta]:
        """Up to what opens a call, or may turn out to."""
        found = [(self._text.find(each, self._at), each) for each in self._openings]
        at, opening = min((each for each in found if each[0] >= 0), default=(-1, ""))
        if at < 0:
            return self._content(self._take(len(self._text) - self._possible_opening()))
        content = self._content(self._take(at))
        self._begun = [self._take(at + (1 if opening == _LIST else len(opening)))]
        self._state = _State.OPENED
        return content

    def _possible_opening(self) -> int:
        """Length of the text's longest end that an opening begins with."""
        available = len(self._text) - self._at
        return max(
            size
            for opening in self._openings
            for size in range(min(len(opening) - 1, available) + 1)
            if self._text.endswith(opening[:size])
        )

    def _opened(self) -> list[Delta]:
        """Spaces, and the bracket of a list, may stand before a call."""
        self._begun.append(self._take_spaces())
        following = self._text[self._at : self._at + 1]
        if following == "[" and self._form is ToolCallForm.MISTRAL and "[" not in self._begun:
            self._begun.append(self._take(self._at + 1))
        elif following == "{":
            self._state = _State.HEAD
        elif following:
            return self._give_up()
        return []

    def _head(self) -> list[Delta]:
        """A call as models begin it: a name, then arguments."""
        end = self._at + MAX_HEAD
        head = _HEAD.match(self._text, self._at, end)
        if head is not None and head[1] in self._functions:
            self._take(head.end())
            self._scanner = ObjectScanner(depth=1)
            self._state = _State.ARGUMENTS
            return [self._began(head[1], "")]
        if head is not None or len(self._text) >= end or "}" in self._text[self._at : end]:
            self._scanner = ObjectScanner()
            self._state = _State.WHOLE
        return []

    def _arguments(self) -> list[Delta]:
        end = self._scanner.scan(self._text, self._at, 1)
        if end is not None:
            self._state = _State.TAIL
        return [ToolCallDelta(self.calls - 1, self._take(end))]

    def _tail(self) -> list[Delta]:
        """Members behind the arguments are none of OpenAI's."""
        end = self._scanner.scan(self._text, self._at, 0)
        if end is not None:
            self._state = _State.AFTER_CALL
        self._take(end)
        return []

    def _whole(self) -> list[Delta]:
        end = self._scanner.scan(self._text, self._at, 0)
        self._call.append(self._take(end))
        if end is None:
            return []
        written, self._call = "".join(self._call), []
        call = self._read_call(written)
        if call is None:
            self._begun.append(written)
            return self._give_up()
        self._state = _State.AFTER_CALL
        return [self._began(*call)]

    def _after_call(self) -> list[Delta]:
        """A separator, or what closes the calls."""
        self._take_spaces()
        separator, rest = _SEPARATORS[self._form], self._text[self._at : self._at + 1]
        if rest and rest == separator:
            self._begun = [self._take(self._at + 1)]
            self._state = _State.OPENED
        elif self._form is ToolCallForm.MISTRAL and rest == "]":
            self._take(self._at + 1)
            self._state = _State.CONTENT
        elif self._closing and self._text.startswith(self._closing, self._at):
            self._take(self._at + len(self._closing))
            self._state = _State.CONTENT
        elif rest and not self._closes_soon():
            self._state = _State.CONTENT
        return []

    def _closes_soon(self) -> bool:
        """Whether the text ends within what closes a call."""
        rest = self._text[self._at : self._at + len(self._closing)]
        return len(rest) < len(self._closing) and self._closing.startswith(rest)

    def _read_call(self, written: str) -> tuple[str, str] | None:
        """The function that an object calls, and its arguments; none if it calls none."""
        try:
            called = json_text.loads(written)
        except (ValueError, RecursionError):
            return None
        name = called.get("name")
        arguments = called.get("arguments", called.get("parameters"))
        if name not in self._functions or not isinstance(arguments, dict):
            return None
        return name, json.dumps(arguments, ensure_ascii=False)

    def _began(self, name: str, arguments: str) -> ToolCallDelta:
        """A call's first delta."""
        self._begun, self._spaces = [], []
        index, self.calls = self.calls, self.calls + 1
        digest = hashlib.blake2b(f"{self._request_id}:{index}".encode(), digest_size=12).hexdigest()
        # Templates of Mistral's models take no ids but of nine letters and digits.
        call_id = digest[:9] if self._form is ToolCallForm.MISTRAL else f"call_{digest}"
        return ToolCallDelta(index, arguments, call_id, name)

    def _give_up(self) -> list[Delta]:
        """What was begun is content."""
        begun, self._begun = "".join(self._begun), []
        self._state = _State.CONTENT
        return self._content(begun)

    def _content(self, text: str) -> list[Delta]:
        """Content, without the spaces that may turn out to stand around a call."""
        shown = text.rstrip()
        before, after = "".join(self._spaces), text[len(shown) :]
        if not shown:
            self._spaces.append(after)
            return []
        self._spaces = [after]
        return [ContentDelta(before + shown)]

    def _take_spaces(self) -> str:
        spaces = _SPACES.match(self._text, self._at)
        return self._take(spaces.end() if spaces else self._at)

    def _take(self, end: int | None) -> str:
        """The text up to ``end``, or all; it is read then."""
        begin, self._at = self._at, len(self._text) if end is None else end
        return self._text[begin : self._at]
