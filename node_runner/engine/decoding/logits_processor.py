"""What requests and a checkpoint's generation settings do to logits, before a token is chosen.

A request's penalties and biases come first (:mod:`node_runner.engine.decoding.penalties`), so that
what a setting forbids stays forbidden. Each setting does what transformers' processor of that name
does (`generation/logits_process.py`), in the order in which `generate` applies them. A row depends
on its own text alone, and a draft token's row on the draft tokens before it, so that tokens are
those without speculation.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from mesh.model.generation_config import GenerationConfig
from mesh.wire import SamplingParams
from node_runner.engine.decoding.penalties import (
    PenalizedRow,
    Penalties,
    penalize,
    penalties_of,
)
from node_runner.engine.device.tensors import on_device

BANNED = float("-inf")


@dataclass(slots=True, eq=False)
class TokenHistory:
    """What is looked up in a generation's tokens, by the first ``indexed`` of them. It is made of
    the tokens alone, so a generation that continues elsewhere has the same one."""

    penalties: Penalties | None
    """What its request has taken from logits and added to them; none if that is nothing."""
    followers: defaultdict[tuple[int, ...], set[int]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Tokens that followed each (n - 1)-gram."""
    indexed: int = 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text and the rows of logits after it: one after its last token, and one after each draft
    token. ``max_length``: of the text when it ends, in tokens. ``history``: none if neither request
    nor checkpoint changes its logits."""

    tokens: Sequence[int]
    draft_tokens: Sequence[int]
    prompt_length: int
    max_length: int
    history: TokenHistory | None

    def rows(self) -> Iterator[list[int]]:
        """For each row, the draft tokens before it."""
        return (list(self.draft_tokens[:count]) for count in range(1 + len(self.draft_tokens)))


@dataclass(frozen=True, slots=True)
class _Row:
    """One row's text: ``length`` tokens, the last of which are ``drafts``."""

    text: Continuation
    drafts: list[int]
    length: int

    def last(self, count: int) -> tuple[int, ...]:
        """The last tokens; fewer if there are not as many."""
        if count <= len(self.drafts):
            return tuple(self.drafts[len(self.drafts) - count :])
        before = count - len(self.drafts)
        return (*self.text.tokens[-before:], *self.drafts)

    def penalized(self) -> PenalizedRow:
        """The row as penalties see it."""
        history = self.text.history
        return PenalizedRow(history and history.penalties, self.text.tokens, self.drafts)


class LogitsProcessor:
    """Applies requests and the settings of one model to the logits of many generations.

    Args:
        settings: The checkpoint's.
        device: Where logits are.
    """

    def __init__(self, settings: GenerationConfig, *, device: torch.device) -> None:
        self._settings = settings
        self._restricts = replace(settings, repetition_penalty=1.0).changes_logits
        self._device = device
        words = settings.bad_words_ids
        self._bad_tokens = self._ids(word[0] for word in words if len(word) == 1)
        self._bad_words: dict[int, dict[tuple[int, ...], set[int]]] = {}
        for *prefix, last in (word for word in words if len(word) > 1):
            by_prefix = self._bad_words.setdefault(len(prefix), defaultdict(set))
            by_prefix[tuple(prefix)].add(last)
        self._eos = self._ids(settings.eos_token_ids)
        bos = settings.forced_bos_token_id
        self._forced_bos = self._ids(() if bos is None else (bos,))
        self._forced_eos = self._ids(settings.forced_eos_token_ids)
        self._suppressed = self._ids(settings.suppress_tokens)
        self._suppressed_at_begin = self._ids(settings.begin_suppress_tokens)

    def history(self, params: SamplingParams, prompt_length: int) -> TokenHistory | None:
        """Of a generation that begins, or continues, here; none if its logits stay as they are."""
        penalties = penalties_of(
            params,
            prompt_length=prompt_length,
            repetition=self._settings.repetition_penalty,
        )
        return TokenHistory(penalties) if self._restricts or penalties is not None else None

    def process(self, logits: torch.Tensor, texts: Sequence[Continuation]) -> torch.Tensor:
        """Logits ``[rows, vocab]``, float32, as they are to be sampled from: what must not be
        chosen is minus infinity. The given ones if nothing changes them. The histories grow by the
        texts' new tokens.

        Args:
            logits: After each row of each text.
            texts: In the rows' order.
        """
        rows = [
            _Row(text, drafts, len(text.tokens) + len(drafts))
            for text in texts
            for drafts in text.rows()
        ]
        scores = penalize(logits, [row.penalized() for row in rows])
        if not self._restricts:
            return scores
        for text in texts:
            self._index(text)
        return self._restricted(logits.clone() if scores is logits else scores, rows)

    def _restricted(self, scores: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
        """As the checkpoint's other settings have it."""
        if self._bad_tokens is not None:
            scores[:, self._bad_tokens] = BANNED
        _ban(scores, [[*self._repeating(row), *self._completing(row)] for row in rows])
        self._end_later(scores, rows)
        self._force(scores, rows)
        self._end_sooner(scores, rows)
        if self._suppressed is not None:
            scores[:, self._suppressed] = BANNED
        begins = [at for at, row in enumerate(rows) if row.length == self._begin(row)]
        _set(scores, begins, self._suppressed_at_begin, BANNED)
        # Where every token is banned, the first one is the likeliest, greedily and at random.
        scores[:, 0].masked_fill_(scores.amax(dim=-1) == BANNED, 0)
        return scores.log_softmax(-1) if self._settings.renormalize_logits else scores

    def _ids(self, ids: Iterable[int]) -> torch.Tensor | None:
        listed = sorted(set(ids))
        return on_device(listed, self._device) if listed else None

    def _index(self, text: Continuation) -> None:
        history, size = text.history, self._settings.no_repeat_ngram_size
        if history is None or not size:
            return
        for end in range(max(history.indexed, size - 1), len(text.tokens)):
            prefix = tuple(text.tokens[end - size + 1 : end])
            history.followers[prefix].add(text.tokens[end])
        history.indexed = len(text.tokens)

    def _repeating(self, row: _Row) -> set[int]:
        """Tokens that would make an n-gram stand in the text twice."""
        size, history = self._settings.no_repeat_ngram_size, row.text.history
        if not size or row.length < size - 1 or history is None:
            return set()
        prefix = row.last(size - 1)
        found = history.followers.get(prefix, set())
        tail = row.last(len(row.drafts) + size - 1)
        drafted = {
            tail[end]
            for end in range(len(tail) - len(row.drafts), len(tail))
            if end >= size - 1 and tail[end - size + 1 : end] == prefix
        }
        return found | drafted

    def _completing(self, row: _Row) -> set[int]:
        """Tokens that would complete a forbidden sequence."""
        return {
            token
            for length, by_prefix in self._bad_words.items()
            for token in by_prefix.get(row.last(length), ())
        }

    def _end_later(self, scores: torch.Tensor, rows: Sequence[_Row]) -> None:
        """No end before the least length."""
        least, new = self._settings.min_length, self._settings.min_new_tokens
        early = [
            at
            for at, row in enumerate(rows)
            if row.length < max(least, new and row.text.prompt_length + new)
        ]
        _set(scores, early, self._eos, BANNED)

    def _force(self, scores: torch.Tensor, rows: Sequence[_Row]) -> None:
        """The token after a text of one, and the last one of all."""
        first = [at for at, row in enumerate(rows) if row.length == 1]
        _choose(scores, first, self._forced_bos)
        last = [at for at, row in enumerate(rows) if row.length == row.text.max_length - 1]
        _choose(scores, last, self._forced_eos)

    def _end_sooner(self, scores: torch.Tensor, rows: Sequence[_Row]) -> None:
        """The end is the likelier, the longer the text is."""
        if self._settings.exponential_decay_length_penalty is None or self._eos is None:
            return
        start, factor = self._settings.exponential_decay_length_penalty
        largest = torch.finfo(scores.dtype).max
        late = [max(0, row.length - row.text.prompt_length - start) for row in rows]
        powers = [min(_power(factor, exponent) - 1, largest) for exponent in late]
        ends = scores[:, self._eos]
        penalty = ends.abs() * torch.tensor(powers, device=scores.device)[:, None]
        penalty = penalty.masked_fill(~ends.isfinite(), 0)
        scores[:, self._eos] = (ends + penalty).clamp(max=largest)

    def _begin(self, row: _Row) -> int:
        """Length of the text before the first token that is not forced."""
        prompt = row.text.prompt_length
        forced = self._forced_bos is not None and prompt == 1
        return prompt + 1 if forced else prompt


def _ban(scores: torch.Tensor, tokens: Sequence[Sequence[int]]) -> None:
    """No token of ``tokens``, by row, may be chosen."""
    pairs = [[at, token] for at, banned in enumerate(tokens) for token in banned]
    if pairs:
        at, token = on_device(pairs, scores.device).T
        scores[at, token] = BANNED


def _set(
    scores: torch.Tensor, rows: Sequence[int], tokens: torch.Tensor | None, value: float
) -> None:
    """Set the logits of some tokens in some rows."""
    if rows and tokens is not None:
        scores[on_device(rows, scores.device)[:, None], tokens] = value


def _choose(scores: torch.Tensor, rows: Sequence[int], tokens: torch.Tensor | None) -> None:
    """Leave no others than some tokens, if there are any, in some rows."""
    if rows and tokens is not None:
        scores[on_device(rows, scores.device)] = BANNED
        _set(scores, rows, tokens, 0)


def _power(factor: float, exponent: int) -> float:
    try:
        return factor**exponent
    except OverflowError:
        return float("inf")
