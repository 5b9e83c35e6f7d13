"""Speculative decoding: draft tokens that may follow, and let one step verify them.

Drafts are looked up in the text itself (prompt lookup decoding, Saxena 2023): where its last tokens
stood before, what followed then may follow now. All rows of a step are sampled with the draws of
their positions, and a draft token is accepted only if it is the token that is sampled anyway. So
the tokens are exactly those without speculation, greedy or sampled; only their number per round
trip changes.
"""

from collections.abc import Sequence

from mesh.wire.limits import MAX_DRAFT_TOKENS

LONG_NGRAM, SHORT_NGRAM = 3, 2
"""Tokens that have to stand in the text before: the last three, or the last two if three do not."""

FIRST_DRAFT_LENGTH = 4
MAX_DRAFT_LENGTH = MAX_DRAFT_TOKENS
"""Tokens of a draft. With the token before it, they are few enough rows to attend together
(`attention.interface.MAX_GROUPED_ROWS`)."""

EWMA_WEIGHT = 0.2
"""Weight of the newest measurement in an exponentially weighted moving average."""

FIRST_PAUSE = 8
MAX_PAUSE = 256
"""Steps without drafts after one that did not pay; doubled each time."""

TOLERANCE = 0.97
"""Share of the speed without drafts down to which drafting continues: over slow links a rejected
draft costs a hundredth of a step, and the next accepted one may save several."""


class PromptLookup:
    """Where each pair and triple of a text's tokens stood last. Constant work a token."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def draft(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to ``count`` tokens that may follow ``tokens``; none if the last two tokens did not
        stand in the text before.

        Args:
            tokens: The whole text, which begins with what it was in the call before.
            count: Tokens to draft at most.
        """
        for end in range(max(self._indexed, SHORT_NGRAM), len(tokens)):
            # The n-gram that ends here is continued by the token at `end`.
            for size in (SHORT_NGRAM, LONG_NGRAM):
                self._seen[tuple(tokens[max(0, end - size) : end])] = end
        self._indexed = len(tokens)
        for size in (LONG_NGRAM, SHORT_NGRAM):
            found = self._seen.get(tuple(tokens[-size:]))
            if found is not None:
                return list(tokens[found : found + count])
        return []


class SpeculationPolicy:
    """How many tokens to draft for one generation: none while that does not pay, by tokens per
    second with and without drafts as measured."""

    def __init__(self) -> None:
        self._draft_length = FIRST_DRAFT_LENGTH
        self._pause = 0
        self._next_pause = FIRST_PAUSE
        self._plain_seconds: float | None = None
        self._drafted_seconds: float | None = None
        self._drafted_tokens: float | None = None

    def draft_length(self) -> int:
        """How many tokens to draft for the step that begins now."""
        if self._pause > 0:
            self._pause -= 1
            return 0
        return self._draft_length

    def observe(self, seconds: float, drafted: int, generated: int) -> None:
        """Count the measurement of a step.

        Args:
            seconds: From scheduling the step to sampling what came back.
            drafted: Draft tokens that it verified.
            generated: Tokens that it gave: the accepted draft tokens and one more.
        """
        if drafted == 0:
            self._plain_seconds = _ewma(self._plain_seconds, seconds)
            return
        self._drafted_seconds = _ewma(self._drafted_seconds, seconds)
        self._drafted_tokens = _ewma(self._drafted_tokens, generated)
        if generated == drafted + 1:
            self._draft_length = min(2 * self._draft_length, MAX_DRAFT_LENGTH)
        elif generated - 1 <= drafted // 2:
            self._draft_length = max(self._draft_length // 2, 2)
        if self.pays():
            self._next_pause = FIRST_PAUSE
        else:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, MAX_PAUSE)

    def pays(self) -> bool:
        """Whether drafts give more tokens per second than none, or hardly fewer."""
        if self._drafted_seconds is None or self._drafted_tokens is None:
            return True
        if self._plain_seconds is None:
            return self._drafted_tokens > 1.5
        drafted_rate = self._drafted_tokens / self._drafted_seconds
        return drafted_rate > TOLERANCE / self._plain_seconds


def _ewma(average: float | None, value: float) -> float:
    return value if average is None else average + EWMA_WEIGHT * (value - average)
