"""What the edge does beside its span: tokens in, tokens out.

It feeds prompts and chosen tokens into the first span, samples what the last span returns, and
guesses ahead where that pays.
"""

import time
from collections.abc import Iterable, Sequence

import torch

from mesh import wire
from mesh.wire import Ended, Token
from node_runner.engine.decoding.detokenizer import Detokenizer
from node_runner.engine.decoding.draft_model import Ask, DraftModel
from node_runner.engine.decoding.sampler import sample
from node_runner.engine.decoding.speculation import PromptLookup, SpeculationPolicy
from node_runner.engine.generation import Decoding, Generation, WorkItem
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.scheduler import PREFILL_CHUNK


class Edge:
    """Not thread-safe, as the engine that owns it.

    ``speculate``: whether to guess ahead; ``draft``: a model that does where the text itself has
    nothing to say.
    """

    def __init__(self, span: SpanModel, *, speculate: bool, draft: DraftModel | None) -> None:
        self._span = span
        self._speculate = speculate
        self._draft = draft
        # One answer a generation, however often it came.
        self._returned: dict[str, tuple[Generation, torch.Tensor]] = {}
        self._guesses = (0, 0)

    @property
    def busy(self) -> bool:
        return bool(self._returned)

    def take_drafts(self) -> tuple[int, int]:
        """Tokens guessed since the last call, and how many of them were right."""
        taken, self._guesses = self._guesses, (0, 0)
        return taken

    def open(self, request_id: str, prompt: wire.Prompt, *, unready: set[int]) -> Decoding:
        """A generation begins here, or goes on after the tokens that readers have."""
        text = Detokenizer(self._span.tokenizer, prompt.token_ids, prompt.sampling.stop)
        stopped = False
        for token_id in prompt.generated:  # brings the decoder up to what readers have
            stopped = text.push(token_id)[1] or token_id in self._span.end_tokens
        tokens = [*prompt.token_ids, *prompt.generated]
        if self._draft is not None:
            self._draft.forget_after(request_id, len(tokens) - 1)
        return Decoding(
            tokens=tokens,
            prompt_length=len(prompt.token_ids),
            max_tokens=prompt.max_tokens,
            sampling=prompt.sampling,
            text=text,
            stopped=stopped,
            lookup=PromptLookup(),
            pace=SpeculationPolicy(),
            unready=unready,
        )

    def take(self, generation: Generation, position: int, hidden: torch.Tensor) -> None:
        """Back from the last span: a row for the last token, and one for each guess.

        A repeated answer is for a position already passed.
        """
        decoding = generation.decoding
        if decoding is None or position != len(decoding.tokens) - 1:
            return
        if len(hidden) == 1 + len(decoding.drafts):
            self._returned[generation.request_id] = (generation, hidden)

    def sample(self) -> list[tuple[Generation, list[Token], Ended | None]]:
        """Choose the next tokens of every generation whose rows came back."""
        returned = [
            (generation, generation.decoding, hidden)
            for generation, hidden in self._returned.values()
            if generation.decoding is not None and not generation.over
        ]
        self._returned = {}
        if not returned:
            return []
        logits = self._span.logits(torch.cat([hidden for _, _, hidden in returned]))
        chosen = sample(
            logits,
            [decoding.sampling for _, decoding, hidden in returned for _ in hidden],
            [
                len(decoding.tokens) + row
                for _, decoding, hidden in returned
                for row in range(len(hidden))
            ],
        )
        outcomes, at = [], 0
        for generation, decoding, hidden in returned:
            tokens, ended = self._accept(generation, decoding, chosen[at : at + len(hidden)])
            outcomes.append((generation, tokens, ended))
            at += len(hidden)
        return outcomes

    def feed(self, generations: Iterable[Generation]) -> list[WorkItem]:
        """Each generation's next tokens, if it has any: a chunk of its prompt, or what was just
        chosen, and guesses of what follows."""
        began = time.monotonic()
        works, ends = [], []
        for generation in generations:
            decoding = generation.decoding
            if decoding is None or not decoding.unfed:
                continue
            begin = decoding.fed
            end = min(begin + PREFILL_CHUNK, len(decoding.tokens))
            decoding.fed = end
            work = WorkItem(generation, begin, wanted=0, token_ids=decoding.tokens[begin:end])
            if end == len(decoding.tokens):
                ends.append((work, decoding))
            else:
                work.replay = end <= generation.resume.known
            works.append(work)
        self._guess([(w, d) for w, d in ends if d.generated and w.rows == 1])
        now = time.monotonic()
        for work, decoding in ends:
            work.wanted = 1 + len(decoding.drafts)
            work.token_ids += decoding.drafts
            alone = work.rows == 1 + len(decoding.drafts)
            decoding.fed_at = (began if decoding.drafts else now) if alone else None
        return works

    def close(self, generation: Generation) -> None:
        if self._draft is not None:
            self._draft.close(generation.request_id)

    def _guess(self, ends: Sequence[tuple[WorkItem, Decoding]]) -> None:
        """Set the drafts of those that were fed their last token: from the text itself, else by the
        draft model, all in its same forwards."""
        asks = []
        for work, decoding in ends if self._speculate else ():
            left = decoding.max_tokens - decoding.generated - 1
            width = min(decoding.pace.width(), left)
            if width > 0:
                decoding.drafts = decoding.lookup.guess(decoding.tokens, width)
            if width > 0 and not decoding.drafts and self._draft is not None:
                generation = work.generation
                capacity, sampling = generation.place.capacity, decoding.sampling
                ask = Ask(generation.request_id, decoding.tokens, width, capacity, sampling)
                asks.append((decoding, ask))
        if asks and self._draft is not None:
            guesses = self._draft.guess([ask for _, ask in asks])
            for (decoding, _), guess in zip(asks, guesses, strict=True):
                decoding.drafts = guess

    def _accept(
        self, generation: Generation, decoding: Decoding, chosen: list[int]
    ) -> tuple[list[Token], Ended | None]:
        """Tokens as far as the guesses that led to them were right."""
        guesses = decoding.drafts
        tokens: list[Token] = []
        reason = None
        for row, token_id in enumerate(chosen):
            text, stopped = decoding.text.push(token_id)
            stopped = stopped or token_id in self._span.end_tokens
            index = decoding.generated
            decoding.tokens.append(token_id)
            if stopped or decoding.generated >= decoding.max_tokens:
                reason = "stop" if stopped else "length"
                text += decoding.text.flush()
            tokens.append(Token(generation.request_id, generation.epoch, index, token_id, text))
            if reason or row == len(guesses) or token_id != guesses[row]:
                break
        guessed, accepted = self._guesses
        self._guesses = (guessed + len(guesses), accepted + len(tokens) - 1)
        if decoding.fed_at is not None:
            decoding.pace.observe(time.monotonic() - decoding.fed_at, len(guesses), len(tokens))
        decoding.fed = len(decoding.tokens) - 1
        decoding.drafts = []
        if self._draft is not None:
            self._draft.forget_after(generation.request_id, decoding.fed)
        if reason is None:
            return tokens, None
        return tokens, Ended(generation.request_id, generation.epoch, reason, decoding.generated)
