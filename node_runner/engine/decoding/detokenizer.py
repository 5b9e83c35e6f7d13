"""The text of a generation's tokens as readers get it, and where it stops."""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from mesh.wire.limits import MAX_TOKEN_TEXT
from node_runner.engine.decoding.text_decoder import TextDecoder

FIRST_MARK = 0xD800
_MARK = re.compile("[\ud800-\udfff]")
"""Stands for a special token in text that is searched for stop strings: a surrogate, which no text
has."""


class Detokenizer:
    """Turns a generation's tokens into pieces of text, of :data:`MAX_TOKEN_TEXT` characters at
    most. Holds back an incomplete character, and whatever may turn out to be the beginning of a
    stop string.

    Args:
        tokenizer: The model's.
        prompt: The prompt's token ids, on which the first piece's whitespace may depend.
        stop: Strings before which the text ends. They may name special tokens, which are never
            shown.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._decoder = TextDecoder(tokenizer, prompt)
        self._stop = [text for text in stop if text]
        self._marks: dict[int, str] = {}
        if self._stop:
            self._mark_special_tokens(tokenizer)
        self._held = ""
        self._stopped = False

    def push(self, token_id: int) -> tuple[str, bool]:
        """Add a token.

        Returns:
            The text that is safe to show now, and whether a stop string was met. The stop string,
            and what follows it, is never shown.
        """
        mark = self._marks.get(token_id)
        if mark is None:
            return self._show(self._decoder.push(token_id))
        return self._show(self._decoder.flush() + mark)

    def flush(self) -> str:
        """The text that was held back, once no more tokens come."""
        if self._stopped:
            return ""
        shown, stopped = self._show(self._decoder.flush())
        return shown if stopped else (shown + self._visible(self._held))[:MAX_TOKEN_TEXT]

    def _mark_special_tokens(self, tokenizer: Tokenizer) -> None:
        """Special tokens that stop strings name are marks, in the strings and in the text."""
        special = {
            token.content: token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content
        }
        for content in sorted(special, key=len, reverse=True):
            if any(content in text for text in self._stop):
                mark = chr(FIRST_MARK + len(self._marks))
                self._marks[special[content]] = mark
                self._stop = [text.replace(content, mark) for text in self._stop]

    def _show(self, text: str) -> tuple[str, bool]:
        self._held += text
        hits = [at for text in self._stop if (at := self._find(text)) is not None]
        if hits:
            shown, self._held = self._held[: min(hits)], ""
            self._stopped = True
            return self._visible(shown)[:MAX_TOKEN_TEXT], True
        begins = [self._possible_stop(text) for text in self._stop]
        end = min([len(self._held), MAX_TOKEN_TEXT, *begins])
        shown, self._held = self._held[:end], self._held[end:]
        return self._visible(shown), False

    def _find(self, stop: str) -> int | None:
        """Where a stop string stands in the text that is held."""
        at = self._searched(stop).find(stop)
        return None if at < 0 else self._place(at, stop)

    def _possible_stop(self, stop: str) -> int:
        """Where the longest tail begins that is a beginning of a stop string; the end of the text
        if none is."""
        searched = self._searched(stop)
        longest = min(len(stop) - 1, len(searched))
        for size in range(longest, 0, -1):
            if searched.endswith(stop[:size]):
                return self._place(len(searched) - size, stop)
        return len(self._held)

    def _searched(self, stop: str) -> str:
        """The text to search for a stop string: with marks if the string has any."""
        return self._held if not self._marks or _MARK.search(stop) else self._visible(self._held)

    def _place(self, at: int, stop: str) -> int:
        """The index in the text that is held of a character that was found in
        :meth:`_searched`."""
        if not self._marks or _MARK.search(stop):
            return at
        places = [index for index, each in enumerate(self._held) if not _MARK.match(each)]
        return places[at]

    def _visible(self, text: str) -> str:
        return _MARK.sub("", text) if self._marks else text
