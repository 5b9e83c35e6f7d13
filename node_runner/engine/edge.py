"""What the edge does beside its span: tokens in, tokens out.

The edge puts prompts and sampled tokens into the first span, samples from the hidden states that
the last span returns, and drafts tokens ahead (speculative decoding) where that pays.
"""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial

import torch

from mesh import wire
from mesh.wire import Ended, Token
from mesh.wire.limits import MAX_DRAFT_TOKENS, MAX_TOKEN_TEXT
from node_runner.engine.decoding.detokenizer import Detokenizer
from node_runner.engine.decoding.draft_model import DraftModel, DraftRequest
from node_runner.engine.decoding.grammar import GrammarMatcher, GrammarRows, Grammars
from node_runner.engine.decoding.logits_processor import Continuation, LogitsProcessor
from node_runner.engine.decoding.logprobs import packed_logprobs
from node_runner.engine.decoding.sampler import NOT_FINITE, sample
from node_runner.engine.decoding.speculation import PromptLookup, SpeculationPolicy
from node_runner.engine.device.isolation import each_isolated, isolated
from node_runner.engine.generation import Decoding, FailGeneration, Generation, WorkItem
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.scheduler import PREFILL_CHUNK

GRAMMAR_WAIT = 0.005
"""Seconds for which a step waits for grammars where it has nothing else to sample."""

_Returned = tuple[Generation, Decoding, torch.Tensor]
"""A generation, and the hidden states ``[rows, hidden]`` from which its next tokens are sampled."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """After each row, a token id or :data:`NOT_FINITE`, and its packed log-probabilities."""

    generation: Generation
    decoding: Decoding
    tokens: list[int]
    logprobs: list[bytes]


@dataclass(frozen=True, slots=True)
class Sampled:
    """New tokens of a generation, and its end if they end it. ``finite``: whether there were logits
    to sample from after them, if there is no end."""

    generation: Generation
    tokens: list[Token]
    ended: Ended | None
    finite: bool


class Edge:
    """Tokens in and tokens out at the first span of a model. Not thread-safe.

    Args:
        span: The engine's span. Only the first span of a model has the embedding and the LM head;
            with any other, an edge has no generations.
        speculate: Whether to draft tokens.
        draft_model: Drafts tokens where the text itself gives nothing to look up.
        fail: Ends a generation.
    """

    def __init__(
        self,
        span: SpanModel,
        *,
        speculate: bool,
        draft_model: DraftModel | None,
        fail: FailGeneration,
    ) -> None:
        self._span = span
        self._processor = (
            LogitsProcessor(span.generation_config, device=span.device) if span.edge else None
        )
        self._grammars = _grammars(span) if span.edge else None
        self._fail = fail
        self._speculate = speculate
        self.draft_model = draft_model
        # By request id: an answer that arrives twice is sampled once.
        self._returned: dict[str, tuple[Generation, torch.Tensor]] = {}
        self._draft_counts = (0, 0)

    @property
    def busy(self) -> bool:
        """Whether hidden states wait to be sampled."""
        return bool(self._returned)

    def pop_draft_counts(self) -> tuple[int, int]:
        """Tokens drafted since the last call, and how many of them were accepted."""
        counts, self._draft_counts = self._draft_counts, (0, 0)
        return counts

    def open(self, request_id: str, prompt: wire.Prompt, *, stages_not_ready: set[int]) -> Decoding:
        """Begin a generation, or continue it after the tokens that readers have.

        Args:
            request_id: The generation's.
            prompt: Its prompt, and the tokens of earlier epochs.
            stages_not_ready: Stages whose nodes have to say how much of the prompt they hold
                before tokens are scheduled.
        """
        detokenizer = Detokenizer(self._span.tokenizer, prompt.token_ids, prompt.sampling.stop)
        stopped = False
        for token_id in prompt.generated:  # what the detokenizer holds back depends on them
            stopped = detokenizer.push(token_id)[1] or token_id in self._span.end_tokens
        tokens = [*prompt.token_ids, *prompt.generated]
        if self.draft_model is not None:
            self.draft_model.truncate(request_id, len(tokens) - 1)
        return Decoding(
            tokens=tokens,
            prompt_length=len(prompt.token_ids),
            max_tokens=prompt.max_tokens,
            sampling_params=prompt.sampling,
            detokenizer=detokenizer,
            history=self._processor
            and self._processor.history(prompt.sampling, len(prompt.token_ids)),
            stopped=stopped,
            grammar=self._compile(prompt),
            prompt_lookup=PromptLookup(),
            speculation=SpeculationPolicy(),
            stages_not_ready=stages_not_ready,
        )

    def _compile(self, prompt: wire.Prompt) -> Future[GrammarMatcher] | None:
        grammar = prompt.sampling.grammar
        if self._grammars is None or not grammar:
            return None
        return self._grammars.compile(grammar, prompt.generated)

    def receive(self, generation: Generation, position: int, hidden: torch.Tensor) -> None:
        """Take hidden states from the last span, to be sampled in the next step.

        Args:
            generation: Whose they are.
            position: The first row's: the last token's. A repeated answer is for an earlier
                position, and ignored.
            hidden: ``[rows, hidden]``: a row for the last token, and one for each draft token.
        """
        decoding = generation.decoding
        if decoding is None or position != len(decoding.tokens) - 1:
            return
        if len(hidden) == 1 + len(decoding.draft_tokens):
            self._returned[generation.request_id] = (generation, hidden)

    def sample(self) -> list[Sampled]:
        """Choose the next tokens of every generation whose hidden states came back, and whose
        grammar is compiled, if it has one."""
        returned: list[_Returned] = [
            (generation, generation.decoding, hidden)
            for generation, hidden in self._returned.values()
            if generation.decoding is not None and not generation.halted
        ]
        compiling = [item for item in returned if item[1].compiling]
        self._returned = {item[0].request_id: (item[0], item[2]) for item in compiling}
        if len(compiling) == len(returned):
            wait([item[1].grammar for item in compiling], GRAMMAR_WAIT)
            return []
        ready = [item for item in returned if not item[1].compiling]
        complete = each_isolated(_complete, ready, lambda item, error: self._fail(item[0], error))
        over = [
            Sampled(generation, [], _ended(generation, decoding, "stop"), finite=True)
            for (generation, decoding, _), is_complete in complete
            if is_complete
        ]
        returned = [item for item, is_complete in complete if not is_complete]
        chosen = isolated(self._choose, returned, lambda item, error: self._fail(item[0], error))
        return over + each_isolated(
            self._accept, chosen, lambda item, error: self._fail(item.generation, error)
        )

    def _choose(self, returned: Sequence[_Returned]) -> list[_Chosen]:
        """A token after each row of hidden states."""
        logits = self._span.logits(torch.cat([hidden for _, _, hidden in returned]))
        params = [decoding.sampling_params for _, decoding, hidden in returned for _ in hidden]
        positions = [
            len(decoding.tokens) + row
            for _, decoding, hidden in returned
            for row in range(len(hidden))
        ]
        process = partial(self._process, returned)
        sampled = sample(logits, params, positions, process=process)
        logprobs = packed_logprobs(logits, sampled, params)
        chosen, at = [], 0
        for generation, decoding, hidden in returned:
            rows = slice(at, at + len(hidden))
            chosen.append(_Chosen(generation, decoding, sampled[rows], logprobs[rows]))
            at += len(hidden)
        return chosen

    def _process(self, returned: Sequence[_Returned], logits: torch.Tensor) -> torch.Tensor:
        """Logits as requests and the checkpoint's generation settings change them; the given ones
        where nobody asks for that."""
        return self._restrict(returned, self._penalize(returned, logits), logits)

    def _penalize(self, returned: Sequence[_Returned], logits: torch.Tensor) -> torch.Tensor:
        if self._processor is None or all(decoding.history is None for _, decoding, _ in returned):
            return logits
        texts = [
            Continuation(
                decoding.tokens,
                decoding.draft_tokens,
                decoding.prompt_length,
                decoding.prompt_length + decoding.max_tokens,
                decoding.history,
            )
            for _, decoding, _ in returned
        ]
        return self._processor.process(logits, texts)

    def _restrict(
        self, returned: Sequence[_Returned], scores: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Scores without what grammars do not allow."""
        if self._grammars is None:
            return scores
        texts, at = [], 0
        for _, decoding, hidden in returned:
            if decoding.matcher is not None:
                texts.append(GrammarRows(decoding.matcher, at, decoding.draft_tokens))
            at += len(hidden)
        return self._grammars.restrict(scores, logits, texts)

    def next_inputs(self, generations: Iterable[Generation]) -> list[WorkItem]:
        """The next tokens of each generation that has any: a chunk of its prompt, or the token that
        was just sampled, with draft tokens behind it."""
        began = time.monotonic()
        waiting = [g for g in generations if g.decoding is not None and g.decoding.schedulable]
        items = each_isolated(_next_input, waiting, self._fail)
        complete = [
            (item, decoding)
            for item in items
            if (decoding := item.generation.decoding) is not None
            and decoding.num_scheduled_tokens == len(decoding.tokens)
        ]
        self._draft([(item, d) for item, d in complete if d.generated and item.rows == 1])
        now = time.monotonic()
        for item, decoding in complete:
            alone = item.rows == 1
            item.rows_to_sample = 1 + len(decoding.draft_tokens)
            item.token_ids += decoding.draft_tokens
            # Drafting counts as part of the step that it is for.
            started = began if decoding.draft_tokens else now
            decoding.scheduled_at = started if alone and not decoding.drafts_forced else None
        return items

    def close(self, generation: Generation) -> None:
        """Free what the draft model keeps of a generation, and do not compile its grammar."""
        if self.draft_model is not None:
            self.draft_model.close(generation.request_id)
        if generation.decoding is not None and generation.decoding.grammar is not None:
            generation.decoding.grammar.cancel()

    def _draft(self, steps: Sequence[tuple[WorkItem, Decoding]]) -> None:
        """Draft tokens for decode steps: looked up in the text itself, else by the draft model, all
        in the same forward passes."""
        if not self._speculate:
            return
        looked_up = each_isolated(
            self._look_up, steps, lambda step, error: self._fail(step[0].generation, error)
        )
        requests = [request for request in looked_up if request is not None]
        isolated(self._ask, requests, lambda request, error: self._fail(request[0], error))

    def _look_up(
        self, step: tuple[WorkItem, Decoding]
    ) -> tuple[Generation, Decoding, DraftRequest] | None:
        """Draft tokens that the grammar forces, else from the text; if there are none, what to ask
        the draft model for."""
        item, decoding = step
        left = decoding.max_tokens - decoding.generated - 1
        decoding.draft_tokens = decoding.forced_tokens(min(MAX_DRAFT_TOKENS, left))
        decoding.drafts_forced = bool(decoding.draft_tokens)
        if decoding.drafts_forced:
            return None
        count = min(decoding.speculation.draft_length(), left)
        if count <= 0:
            return None
        found = decoding.prompt_lookup.draft(decoding.tokens, count)
        decoding.draft_tokens = decoding.allowed_tokens(found)
        if decoding.draft_tokens or self.draft_model is None:
            return None
        request = DraftRequest(
            item.generation.request_id,
            decoding.tokens,
            count,
            item.generation.stage_assignment.capacity,
            decoding.sampling_params,
            decoding.history and decoding.history.penalties,
        )
        return item.generation, decoding, request

    def _ask(self, requests: Sequence[tuple[Generation, Decoding, DraftRequest]]) -> list[None]:
        """Draft tokens from the draft model."""
        if self.draft_model is not None:
            drafts = self.draft_model.draft([request for _, _, request in requests])
            for (_, decoding, _), draft in zip(requests, drafts, strict=True):
                decoding.draft_tokens = decoding.allowed_tokens(draft)
        return []

    def _accept(self, chosen: _Chosen) -> Sampled:
        """The sampled tokens, up to the first that differs from its draft token."""
        generation, decoding = chosen.generation, chosen.decoding
        drafts = decoding.draft_tokens
        tokens: list[Token] = []
        reason, finite = None, True
        for row, token_id in enumerate(chosen.tokens):
            if token_id == NOT_FINITE:
                finite = False
                break
            text, stopped = decoding.detokenizer.push(token_id)
            ends = token_id in self._span.end_tokens
            stopped = stopped or ends or decoding.completes_grammar(token_id, ends=ends)
            index = decoding.generated
            decoding.tokens.append(token_id)
            if stopped or decoding.generated >= decoding.max_tokens:
                reason = "stop" if stopped else "length"
                text = (text + decoding.detokenizer.flush())[:MAX_TOKEN_TEXT]
            about = (generation.request_id, generation.epoch)
            tokens.append(Token(*about, index, token_id, text, chosen.logprobs[row]))
            if reason or row == len(drafts) or token_id != drafts[row]:
                break
        accepted = sum(
            token.token_id == draft for token, draft in zip(tokens, drafts, strict=False)
        )
        decoding.accepted_drafts += accepted
        decoding.rejected_drafts += len(drafts) - accepted
        drafted, accepted_before = self._draft_counts
        self._draft_counts = (drafted + len(drafts), accepted_before + accepted)
        if decoding.scheduled_at is not None:
            seconds = time.monotonic() - decoding.scheduled_at
            decoding.speculation.observe(seconds, len(drafts), len(tokens))
        decoding.num_scheduled_tokens = len(decoding.tokens) - 1
        decoding.draft_tokens, decoding.drafts_forced = [], False
        if self.draft_model is not None:
            self.draft_model.truncate(generation.request_id, decoding.num_scheduled_tokens)
        ended = reason and _ended(generation, decoding, reason)
        return Sampled(generation, tokens, ended, finite)


def _complete(item: _Returned) -> tuple[_Returned, bool]:
    """Whether the tokens of earlier epochs are all that the grammar allows."""
    matcher = item[1].matcher
    return item, matcher is not None and matcher.complete


def _ended(generation: Generation, decoding: Decoding, reason: str) -> Ended:
    return Ended(
        generation.request_id,
        generation.epoch,
        reason,
        decoding.generated,
        decoding.accepted_drafts,
        decoding.rejected_drafts,
    )


def _grammars(span: SpanModel) -> Grammars:
    return Grammars(
        span.tokenizer,
        vocab_size=span.vocab_size,
        end_tokens=span.end_tokens,
        device=span.device,
    )


def _next_input(generation: Generation) -> WorkItem:
    """A chunk of the prompt, or the last token."""
    decoding = generation.decoding
    begin = decoding.num_scheduled_tokens
    end = min(begin + PREFILL_CHUNK, len(decoding.tokens))
    decoding.num_scheduled_tokens = end
    item = WorkItem(generation, begin, rows_to_sample=0, token_ids=decoding.tokens[begin:end])
    if end < len(decoding.tokens):
        item.replay = end <= generation.resume.known
    return item
