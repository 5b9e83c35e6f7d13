"""Grammars that texts have to follow: which tokens may come next, and which must.

A matcher's state is made of the generated tokens alone, so a generation that continues elsewhere
chooses among the same tokens. Where a grammar leaves one text only, it leaves one way to write that
in tokens: the tokenizer's.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from mesh.grammar import GrammarRefused, compile_grammar
from node_runner.engine.device.tensors import on_device

BANNED = float("-inf")

_BITS = 8


class GrammarMatcher:
    """How far one generation's text has followed its grammar. ``matcher``: llguidance's."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether nothing may follow any more but an end token."""
        return self.matcher.is_stopped()

    def advance(self, tokens: Sequence[int]) -> None:
        """The text goes on.

        Raises:
            GrammarRefused: the grammar does not let it.
        """
        if tokens and not self.matcher.consume_tokens(list(tokens)):
            raise GrammarRefused(self.matcher.get_error())

    def forced(self, count: int) -> list[int]:
        """Tokens that have to come next, ``count`` of them at most."""
        return self.matcher.compute_ff_tokens()[:count]

    def allowed(self, tokens: Sequence[int]) -> list[int]:
        """As many of the tokens as may come next, from the first one on."""
        return list(tokens[: self.matcher.validate_tokens(list(tokens))]) if tokens else []

    def check(self) -> None:
        """
        Raises:
            GrammarRefused: the text has become too costly to follow.
        """
        if self.matcher.is_error():
            raise GrammarRefused(self.matcher.get_error())


@dataclass(frozen=True, slots=True)
class GrammarRows:
    """Rows of logits after a text that follows a grammar: row ``first`` after its last token, and
    one more after each draft token."""

    matcher: GrammarMatcher
    first: int
    draft_tokens: Sequence[int]

    def indices(self) -> range:
        """Of the rows."""
        return range(self.first, self.first + 1 + len(self.draft_tokens))


class Grammars:
    """Follows grammars with one model's vocabulary.

    Args:
        tokenizer: The model's.
        vocab_size: Width of its logits.
        end_tokens: Token ids that end a text. They are allowed wherever it may end.
        device: Where logits are.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        end_tokens: Iterable[int],
        device: torch.device,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_tokens = sorted(end_tokens)
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        bits = torch.arange(2**_BITS)[:, None] >> torch.arange(_BITS) & 1
        self._bits = bits.bool().to(device)
        """Of each byte, the lowest first."""

    def compile(self, grammar: str, generated: Sequence[int]) -> Future[GrammarMatcher]:
        """A matcher after the tokens that were generated. It comes from a thread, where grammars
        are compiled one after the other: one takes milliseconds, a hostile one a third of a second,
        and before the first the vocabulary is read, which takes seconds if it has 150,000 tokens.

        The future raises :class:`GrammarRefused` if the grammar cannot be followed, or the tokens
        have not followed it.
        """
        return self._thread.submit(self._compile, grammar, list(generated))

    def restrict(
        self, scores: torch.Tensor, logits: torch.Tensor, texts: Sequence[GrammarRows]
    ) -> torch.Tensor:
        """Scores ``[rows, vocab]`` in which what a grammar does not allow is minus infinity; rows
        of other texts stay as they are. Where all is banned already that a grammar allows, that is
        as likely as the model has it, since a text has to go on.

        Args:
            scores: What else there is made of the logits.
            logits: The model's, ``[rows, vocab]``, float32.
            texts: Those that follow a grammar.

        Raises:
            GrammarRefused: a text has become too costly to follow; no matcher has changed.
        """
        if not texts:
            return scores
        rows = on_device([row for text in texts for row in text.indices()], self._device)
        banned = ~self._allowed(texts, len(rows))
        own = scores[rows].masked_fill(banned, BANNED)
        stuck = own.amax(dim=-1, keepdim=True) == BANNED
        likely = logits[rows].clamp(min=torch.finfo(logits.dtype).min)
        own = own.where(~stuck, likely.masked_fill(banned, BANNED))
        return scores.index_copy(0, rows, own)

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        # A tokenizer may know tokens that have no logits, and logits may have no token.
        highest = max(self._tokenizer.get_vocab().values(), default=0)
        try:
            return LLTokenizer(
                self._tokenizer.to_str(),
                n_vocab=max(self._vocab_size, highest + 1),
                eos_token=self._end_tokens or None,
            )
        except ValueError as error:
            raise GrammarRefused(str(error)) from error

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor()

    def _compile(self, grammar: str, generated: list[int]) -> GrammarMatcher:
        matcher = GrammarMatcher(compile_grammar(self._vocabulary, grammar))
        matcher.advance(generated)
        return matcher

    def _allowed(self, texts: Sequence[GrammarRows], rows: int) -> torch.Tensor:
        """Which tokens may come in each row, ``[rows, vocab]``. Behind a draft token that may not
        come all may: such a row is never sampled."""
        words = -(-self._vocabulary.vocab_size // 32)
        masks = torch.full((rows, words), -1, dtype=torch.int32)
        alone, drafted, at = [], [], 0
        for text in texts:
            if text.draft_tokens:
                drafted.append((text.matcher.matcher, at, list(text.draft_tokens)))
            else:
                alone.append((text.matcher.matcher, at))
            at += 1 + len(text.draft_tokens)
        memory = (masks.data_ptr(), masks.stride(0) * masks.itemsize, rows)
        if alone:
            self._executor.unsafe_compute_mask_ptr(alone, *memory)
        if drafted:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(drafted, *memory)
        for text in texts:
            text.matcher.check()
        bits = self._bits[masks.view(torch.uint8).to(self._device).long()]
        return bits.flatten(1)[:, : self._vocab_size]
