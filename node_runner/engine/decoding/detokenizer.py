"""Token ids to text as they come, and where to stop."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns a generation's tokens into pieces of text. Holds back an incomplete character, and
    whatever may turn out to be the beginning of a stop string.

    Args:
        tokenizer: The model's.
        prompt: The prompt's token ids, on which the first piece's whitespace may depend.
        stop: Strings before which the text ends.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._stop = [text for text in stop if text]
        self._held = ""

    def push(self, token_id: int) -> tuple[str, bool]:
        """Add a token.

        Returns:
            The text that is safe to show now, and whether a stop string was met. The stop string,
            and what follows it, is never shown.
        """
        self._held += self._decoder.step(self._tokenizer, token_id) or ""
        hits = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if hits:
            shown, self._held = self._held[: min(hits)], ""
            return shown, True
        keep = self._possible_stop()
        shown, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return shown, False

    def flush(self) -> str:
        """The text that was held back, once no more tokens come."""
        shown, self._held = self._held, ""
        return shown

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
