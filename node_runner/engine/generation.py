"""One generation on this node, and its positions that wait for a forward pass."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from mesh import wire
from mesh.wire.step_counts import StepCounts
from node_runner.engine.attention.kv_cache import KVCache
from node_runner.engine.decoding.detokenizer import Detokenizer
from node_runner.engine.decoding.grammar import GrammarMatcher
from node_runner.engine.decoding.logits_processor import TokenHistory
from node_runner.engine.decoding.speculation import PromptLookup, SpeculationPolicy
from node_runner.engine.replay_buffer import ReplayBuffer


@dataclass(slots=True)
class Decoding:
    """What the edge keeps of a generation: its tokens, prompt first, and how to continue them."""

    tokens: list[int]
    prompt_length: int
    max_tokens: int
    """Tokens to generate at most, those of earlier epochs included."""
    sampling_params: wire.SamplingParams
    detokenizer: Detokenizer
    history: TokenHistory | None
    """What request and checkpoint look up in the tokens before one is chosen; none if nothing
    changes the logits."""
    stopped: bool
    """Whether the tokens of earlier epochs end with a stop string or an end token."""
    grammar: Future[GrammarMatcher] | None
    """What the text has to follow; none if it is free. Nothing is sampled until it is compiled."""
    prompt_lookup: PromptLookup
    speculation: SpeculationPolicy
    stages_not_ready: set[int]
    """Stages whose nodes have not said yet how much of the prompt their KV caches hold."""
    num_scheduled_tokens: int = 0
    """Tokens that were scheduled for the first span; draft tokens do not count."""
    draft_tokens: list[int] = field(default_factory=list)
    """Tokens that were scheduled behind the last one, to be verified."""
    drafts_forced: bool = False
    """Whether the draft tokens are those that the grammar forces."""
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    scheduled_at: float | None = None
    """When the last token was scheduled, monotonic seconds; none if its step says nothing of
    drafting: a chunk of the prompt was scheduled with it, or the draft tokens are forced."""

    @property
    def generated(self) -> int:
        """Tokens generated so far, those of earlier epochs included."""
        return len(self.tokens) - self.prompt_length

    @property
    def schedulable(self) -> bool:
        """Whether there are tokens to schedule for the first span, and all nodes are ready."""
        return not self.stages_not_ready and self.num_scheduled_tokens < len(self.tokens)

    @property
    def compiling(self) -> bool:
        """Whether the grammar is not compiled yet."""
        return self.grammar is not None and not self.grammar.done()

    @property
    def matcher(self) -> GrammarMatcher | None:
        """What says which tokens may come next; none if the text is free. Waits for its grammar.

        Raises:
            GrammarRefused: the grammar cannot be followed.
        """
        return None if self.grammar is None else self.grammar.result()

    def forced_tokens(self, count: int) -> list[int]:
        """Tokens that the grammar forces to come next, ``count`` of them at most."""
        matcher = None if self.compiling else self.matcher
        return [] if matcher is None else matcher.forced(count)

    def allowed_tokens(self, tokens: list[int]) -> list[int]:
        """As many draft tokens as the grammar allows to come next, from the first one on."""
        matcher = None if self.compiling else self.matcher
        return tokens if matcher is None else matcher.allowed(tokens)

    def completes_grammar(self, token_id: int, *, ends: bool) -> bool:
        """Go on in the grammar by a sampled token; whether nothing may follow it. ``ends``: it is
        an end token, which is none of the grammar's.

        Raises:
            GrammarRefused: the token may not come.
        """
        if self.matcher is None or ends:
            return False
        self.matcher.advance([token_id])
        return self.matcher.complete

    def mark_ready(self, stage: int, positions: int) -> bool:
        """A stage's node has the prompt's first ``positions`` in its KV cache. The first token to
        schedule is that which not all nodes have. Whether all nodes are ready by this."""
        if stage not in self.stages_not_ready:
            return False
        self.stages_not_ready.discard(stage)
        self.num_scheduled_tokens = max(0, min(self.num_scheduled_tokens, positions))
        return not self.stages_not_ready


@dataclass(slots=True, eq=False)
class Generation:
    """One generation on this node, at one epoch."""

    request_id: str
    epoch: int
    stage_assignment: wire.StageAssignment
    resume: wire.Resume
    prefix: list[bytes]
    """Hashes of the prompt's prefixes (:mod:`mesh.prefix_hashes`)."""
    cache: KVCache
    expires_at: float
    """When to close it if its supervisor has not, monotonic seconds."""
    decoding: Decoding | None
    """At the edge only."""
    halted: bool = False
    """Whether work on this epoch has ended: it was refused, stopped, or followed by another."""
    replay_buffer: ReplayBuffer = field(default_factory=ReplayBuffer)
    received: StepCounts = field(default_factory=StepCounts)
    """What the previous node has sent in this epoch, by what this one makes of it."""

    @property
    def first(self) -> bool:
        """Whether the node is the first stage of the route, and so the edge."""
        return self.stage_assignment.stage == 0

    @property
    def last(self) -> bool:
        """Whether the node is the last stage of the route."""
        return self.stage_assignment.stage == self.stage_assignment.stages - 1

    @property
    def schedulable(self) -> bool:
        """Whether the edge has tokens to schedule for the first span."""
        return self.decoding is not None and self.decoding.schedulable


FailGeneration = Callable[[Generation, BaseException], None]
"""Ends a generation in whose work an exception was raised, and no other."""


@dataclass(slots=True)
class WorkItem:
    """Consecutive positions of one generation that wait for a forward pass.

    Args:
        generation: Whose they are.
        position: The first of them.
        rows_to_sample: Positions at the end after each of which the edge samples a token.
        replay: Whether they rebuild a new node's KV cache.
        hidden: ``[rows, hidden]``, in the model's dtype; at the edge none.
        token_ids: At the edge, one a position.
    """

    generation: Generation
    position: int
    rows_to_sample: int
    replay: bool = False
    hidden: torch.Tensor | None = None
    token_ids: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Positions, each of which is one row of the batch."""
        return len(self.token_ids) if self.hidden is None else self.hidden.shape[0]

    @property
    def end(self) -> int:
        """The position behind the last one."""
        return self.position + self.rows
