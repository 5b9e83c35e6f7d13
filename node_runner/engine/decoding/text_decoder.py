"""Token ids to text as they come: the pieces add up to what decoding all ids at once gives."""

import codecs
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
"""What stands for bytes that are no character; as the last character of a text, perhaps for one
that is not complete yet."""

PROMPT_CONTEXT = 16
"""Tokens of the prompt before the first piece: its whitespace may depend on them."""

MAX_HELD_BYTES = 32
"""Byte tokens in a row (byte fallback) whose text is held back: one that is no UTF-8 turns all
before it into replacement characters. Of a longer run, characters are shown as they are complete;
some scripts have no other tokens."""

MAX_WINDOW = 128
"""Tokens that are decoded again with the next one, at most; then only the last of them are."""

KEPT_WINDOW = 8
"""Tokens that are kept of a window that is too long: more than an incomplete character has."""

MAX_ID = 2**32 - 1
"""Tokenizers take no larger ids."""

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class TextDecoder:
    """Decodes one text, token by token, in constant time a token. Raises for no ids.

    Only the last tokens are decoded with the next one: those since a point at which the text was
    settled, that is, whatever follows changes nothing of it. ids that the tokenizer does not know,
    and those of special tokens, have no text.

    Args:
        tokenizer: Of any decoder.
        prompt: Ids before the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._to_token = tokenizer.id_to_token
        self._decode = tokenizer.decode  # which leaves special tokens out
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}
        decoder = tokenizer.decoder
        self._byte_fallback = decoder is not None and b"ByteFallback" in decoder.__getstate__()
        self._window: list[int] = []
        self._context = 0  # ids at the window's beginning whose text was shown
        self._shown = ""  # what was shown of the window's text
        self._completed = ""  # what was shown before its last character, if that was incomplete
        self._end_run()
        for token_id in self._tail(prompt):
            self.push(token_id)
        self._end_prompt()

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is settled now and was not shown before."""
        token = self._to_token(token_id) if 0 <= token_id <= MAX_ID else None
        if token is None or token in self._special:
            return ""
        self._window.append(token_id)
        byte = self._byte(token) if self._byte_fallback else None
        if byte is not None:
            return self._push_byte(byte)
        if self._run:
            self._end_run()
        return self._advance()

    def flush(self) -> str:
        """The rest of the text, if no more tokens come."""
        return self._advance(settled=True)

    def _token(self, token_id: int) -> str | None:
        """The token of an id; none if it has no text."""
        token = self._to_token(token_id) if 0 <= token_id <= MAX_ID else None
        return None if token in self._special else token

    def _byte(self, token: str) -> bytes | None:
        """The byte that a token stands for, such as ``<0x0A>``; none if it is text."""
        if not self._byte_fallback or _BYTE.fullmatch(token) is None:
            return None
        return bytes.fromhex(token[3:5])

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """The prompt's last ids that have text; a run of byte tokens whole, if it is not long."""
        tail: list[int] = []
        for token_id in reversed(prompt):
            token = self._token(token_id)
            if token is None:
                continue
            tail.append(token_id)
            if len(tail) >= MAX_HELD_BYTES + PROMPT_CONTEXT:
                break
            if len(tail) >= PROMPT_CONTEXT and self._byte(token) is None:
                break
        return tail[::-1]

    def _end_prompt(self) -> None:
        """Nothing of the window is to be shown, unless the next tokens complete its last
        character."""
        self._context = len(self._window)
        self._shown = self._decode(self._window)
        self._completed = self._shown.removesuffix(REPLACEMENT)
        if self._character and not self._broken:  # whose text is one replacement a byte
            self._completed = self._decode(self._window[: -self._character])

    def _push_byte(self, byte: bytes) -> str:
        """The token that was added last stands for a byte."""
        if self._broken:
            self._begin_window(1)
            return REPLACEMENT
        self._run += 1
        self._character += 1
        try:
            complete = bool(self._utf8.decode(byte))
        except UnicodeDecodeError:
            self._broken = True
            return self._advance(settled=True)
        if not complete:
            return ""
        size, self._character = self._character, 0
        if self._run < MAX_HELD_BYTES:
            return ""
        piece = self._advance(settled=True)
        self._begin_window(size)
        return piece

    def _end_run(self) -> None:
        """The next byte token is the first of a run."""
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._run = self._character = 0  # bytes of the run, and of its last character
        self._broken = False

    def _advance(self, *, settled: bool = False) -> str:
        """What the window's text has beyond what was shown.

        Args:
            settled: Whether its last character is complete in any case.
        """
        text = self._decode(self._window)
        safe = text if settled or text[-1:] != REPLACEMENT else text[:-1]
        if text.startswith(self._shown):  # nearly always
            piece = safe[len(self._shown) :]
        elif text.startswith(self._completed):
            piece = safe[len(self._completed) :]
        else:  # what was shown has changed, and cannot be taken back
            safe = text
            piece = self._decode(self._window[self._context :])
        if safe == text:
            self._begin_window(len(self._window) - self._context)
        elif piece:
            self._shown = self._completed = safe
        if len(self._window) > MAX_WINDOW:
            self._begin_window(KEPT_WINDOW)
            self._shown = self._completed
        return piece

    def _begin_window(self, count: int) -> None:
        """Keep the last ``count`` tokens, which were shown, as context for the next one."""
        self._window = self._window[-count:] if count else self._window[-1:]
        self._context = len(self._window)
        self._shown = self._decode(self._window)
        self._completed = self._shown.removesuffix(REPLACEMENT)
