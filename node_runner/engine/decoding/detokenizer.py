"""The text of a generation's tokens as readers get it, and where it stops."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from mesh.wire.limits import MAX_TOKEN_TEXT
from node_runner.engine.decoding.text_decoder import TextDecoder


class Detokenizer:
    """Turns a generation's tokens into pieces of text, of :data:`MAX_TOKEN_TEXT` characters at
    most. Holds back an incomplete character, and whatever may turn out to be the beginning of a
    stop string.

    Args:
        tokenizer: The model's.
        prompt: The prompt's token ids, on which the first piece's whitespace may depend.
        stop: Strings before which the text ends.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._decoder = TextDecoder(tokenizer, prompt)
        self._stop = [text for text in stop if text]
        self._held = ""

    def push(self, token_id: int) -> tuple[str, bool]:
        """Add a token.

        Returns:
            The text that is safe to show now, and whether a stop string was met. The stop string,
            and what follows it, is never shown.
        """
        return self._show(self._decoder.push(token_id))

    def flush(self) -> str:
        """The text that was held back, once no more tokens come."""
        shown, stopped = self._show(self._decoder.flush())
        return shown if stopped else (shown + self._held)[:MAX_TOKEN_TEXT]

    def _show(self, text: str) -> tuple[str, bool]:
        self._held += text
        hits = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if hits:
            shown, self._held = self._held[: min(hits)], ""
            return shown[:MAX_TOKEN_TEXT], True
        end = min(len(self._held) - self._possible_stop(), MAX_TOKEN_TEXT)
        shown, self._held = self._held[:end], self._held[end:]
        return shown, False

    def _possible_stop(self) -> int:
        """Length of the longest tail that is a beginning of a stop string."""
        return max(
            (
                size
                for text in self._stop
                for size in range(1, min(len(text), len(self._held) + 1))
                if self._held.endswith(text[:size])
            ),
            default=0,
        )
