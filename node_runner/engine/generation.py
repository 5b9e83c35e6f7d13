"""What a node knows of one generation, and the work that waits for a forward."""

from dataclasses import dataclass, field

import torch

from mesh import wire
from node_runner.engine.attention.kv_cache import KVCache
from node_runner.engine.decoding.detokenizer import Detokenizer
from node_runner.engine.decoding.speculation import PromptLookup, SpeculationPolicy
from node_runner.engine.replay_buffer import ReplayBuffer


@dataclass(slots=True)
class Decoding:
    """What the edge keeps of a generation: its tokens, prompt first, and how to go on."""

    tokens: list[int]
    prompt_length: int
    max_tokens: int
    sampling: wire.SamplingParams
    text: Detokenizer
    stopped: bool
    lookup: PromptLookup
    pace: SpeculationPolicy
    unready: set[int]
    """Stages whose nodes have not said yet where they can begin."""
    fed: int = 0
    """Tokens that have been put into the first span; drafts do not count."""
    drafts: list[int] = field(default_factory=list)
    """What was put in behind the last token, on the chance that it follows."""
    fed_at: float | None = None
    """When the last token was put in, monotonic seconds; none if a piece of the prompt came with
    it, which says nothing of how long a token takes."""

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def unfed(self) -> bool:
        return not self.unready and self.fed < len(self.tokens)


@dataclass(slots=True, eq=False)
class Generation:
    """One generation on this node, at one epoch."""

    request_id: str
    epoch: int
    place: wire.RoutePosition
    resume: wire.Resume
    prefix: list[bytes]
    cache: KVCache
    expires_at: float
    decoding: Decoding | None
    over: bool = False
    """Nothing of this epoch is worked at any more."""
    sent: ReplayBuffer = field(default_factory=ReplayBuffer)

    @property
    def first(self) -> bool:
        return self.place.stage == 0

    @property
    def last(self) -> bool:
        return self.place.stage == self.place.stages - 1


@dataclass(slots=True)
class WorkItem:
    """Consecutive positions of one generation that wait for the forward: token ids at the edge,
    hidden states elsewhere."""

    generation: Generation
    position: int
    wanted: int
    replay: bool = False
    hidden: torch.Tensor | None = None
    token_ids: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.token_ids) if self.hidden is None else self.hidden.shape[0]

    @property
    def end(self) -> int:
        return self.position + self.rows
