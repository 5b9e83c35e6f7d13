"""Speculative decoding: guess what follows, and let one step check the guess.

A guess is looked up in the text itself (prompt lookup decoding, Saxena 2023): where its last
tokens stood before, what followed then may follow now. All rows of a step are sampled with the
draws of their positions, and a guess counts only if it is the token that is chosen anyway. So the
tokens are exactly those without speculation, greedy or sampled; only their number per round trip
changes.
"""

from collections.abc import Sequence

LONG, SHORT = 3, 2
"""Tokens that have to stand there again: three, or two if three do not."""

FIRST_WIDTH = 4
MAX_WIDTH = 12
"""Tokens of a guess. Twelve rows still attend together (attention.FEW_ROWS)."""

SMOOTHING = 0.2
FIRST_PAUSE = 8
MAX_PAUSE = 256
"""Steps without guesses after one that did not pay; doubled each time."""


TOLERANCE = 0.97
"""Share of the speed without guesses at which they go on all the same: over slow links a wrong one
costs a hundredth of a step, and the next right one may save several."""


class PromptLookup:
    """Where each pair and triple of tokens stood last. Constant work a token."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to ``count`` tokens that may follow."""
        for end in range(max(self._indexed, SHORT), len(tokens)):
            # What ends here is continued by the token at `end`.
            for size in (SHORT, LONG):
                self._seen[tuple(tokens[max(0, end - size) : end])] = end
        self._indexed = len(tokens)
        for size in (LONG, SHORT):
            found = self._seen.get(tuple(tokens[-size:]))
            if found is not None:
                return list(tokens[found : found + count])
        return []


class SpeculationPolicy:
    """Whether guessing pays, or costs next to nothing: tokens per second with and without it, as
    measured."""

    def __init__(self) -> None:
        self._width = FIRST_WIDTH
        self._pause = 0
        self._next_pause = FIRST_PAUSE
        self._plain: float | None = None
        self._guessed: float | None = None
        self._gained: float | None = None

    def width(self) -> int:
        """How many tokens to guess for the step that begins now."""
        if self._pause > 0:
            self._pause -= 1
            return 0
        return self._width

    def observe(self, seconds: float, guessed: int, tokens: int) -> None:
        """A round trip brought ``tokens``, of which all but one had been ``guessed``."""
        if guessed == 0:
            self._plain = _smoothed(self._plain, seconds)
            return
        self._guessed = _smoothed(self._guessed, seconds)
        self._gained = _smoothed(self._gained, tokens)
        if tokens == guessed + 1:
            self._width = min(2 * self._width, MAX_WIDTH)
        elif tokens - 1 <= guessed // 2:
            self._width = max(self._width // 2, 2)
        if self._pays():
            self._next_pause = FIRST_PAUSE
        else:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, MAX_PAUSE)

    def _pays(self) -> bool:
        if self._guessed is None or self._gained is None:
            return True
        if self._plain is None:
            return self._gained > 1.5
        return self._gained / self._guessed > TOLERANCE / self._plain


def _smoothed(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
