"""What nodes, workers and readers say to each other: a msgpack header, and raw tensor bytes.

Delivery contract: a message may arrive twice or never. A :class:`Step` has its position, and
its receiver truncates its KV cache to that position first, so a repeated step is harmless; a lost
one shows as a stall, which the supervisor answers with a new epoch.

Everything is checked before anything is allocated: kind, field types, dtype, and that the bytes
are exactly as many as the shape says. Nothing here can execute what it is sent.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

DTYPES = ("float32", "bfloat16", "float16", "int8")
"""What hidden states may travel as. ``int8`` is blockwise: each :data:`INT8_BLOCK` values of a
row share a scale, a float16; all scales follow all values."""

INT8_BLOCK = 64
"""Values under one scale: 1/32 more bytes, and an outlier spoils no more than its neighbours."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the edge chooses the next token.

    ``temperature`` 0 means greedy. ``top_k``: choose among so many of the likeliest (0: of all).
    ``min_p``: only what is at least so likely as a share of the likeliest. ``repetition_penalty``:
    as in transformers (Keskar et al. 2019); none for the checkpoint's own. ``frequency_penalty``,
    ``presence_penalty``: taken from the logits of tokens that were generated before, for each time
    and for once (OpenAI's). ``logit_bias``: added to logits, by token id. ``logprobs``: so many of
    the likeliest tokens are reported with each token, beside itself; none if nothing is reported.
    ``grammar``: what the text has to follow, in llguidance's form; empty if it is free.
    """

    temperature: float
    top_p: float
    seed: int
    stop: list[str]
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    grammar: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What only the edge gets: token ids, and how to continue them.

    ``generated`` holds the tokens that readers have already (after a re-route); the edge
    prefills them again and continues after them.
    """

    token_ids: list[int]
    generated: list[int]
    max_tokens: int
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class StageAssignment:
    """Which stage of a generation's route a node serves, and between which neighbours.

    ``capacity`` is in positions, ``expires_in`` in seconds. ``next_node`` is the next hop, from
    the last stage the edge; ``previous_node`` sends the steps, and is refused for bad ones.
    ``start_layer`` and ``end_layer`` (not included) are the span that the route counts on: a node
    that serves another one refuses.
    """

    stage: int
    stages: int
    edge_node: str
    previous_node: str
    next_node: str
    capacity: int
    expires_in: int
    start_layer: int
    end_layer: int


@dataclass(frozen=True, slots=True)
class Resume:
    """What of the epoch before a node goes on with.

    ``keep``: it served the epoch before, and its KV cache is still right. ``replay``: the next
    node is new, and is to be sent what this one computed before, marked as a replay. ``known``:
    positions that every node which keeps its cache has; 0 if none does.
    """

    keep: bool
    replay: bool
    known: int


@dataclass(frozen=True, slots=True)
class Open:
    """Supervisor to node: reserve KV blocks and expect steps of this generation.

    A repeated or older epoch is ignored. ``prefix`` names the prompt's beginnings, ever longer,
    by keyed hashes (:mod:`mesh.prefix_hashes`): a node that has computed one may begin after it,
    and says so to the edge with :class:`PrefixCached`.
    """

    request_id: str
    epoch: int
    stage_assignment: StageAssignment
    resume: Resume
    prefix: list[bytes]


@dataclass(frozen=True, slots=True)
class OpenEdge:
    """Supervisor to edge: as :class:`Open`, with the prompt. The edge starts at once, or when
    all nodes are ready if there is a ``prefix``."""

    request_id: str
    epoch: int
    stage_assignment: StageAssignment
    resume: Resume
    prefix: list[bytes]
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class PrefixCached:
    """Node to edge: its cache already holds the prompt's first ``positions`` positions."""

    request_id: str
    epoch: int
    stage: int
    positions: int


@dataclass(frozen=True, slots=True)
class PrefixReused:
    """Edge to supervisor: all nodes' caches held the prompt's first ``positions`` positions, and
    the prompt is computed from there on. Not said if there are none."""

    request_id: str
    epoch: int
    positions: int


@dataclass(frozen=True, slots=True)
class Close:
    """Supervisor to node: the generation ended; free its KV blocks."""

    request_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StopEpoch:
    """Transport to its node: a token was refused, since the epoch is over. Work no more at that
    epoch; the next one, or the end, is on its way."""

    request_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Supervisor to node: does it run? Answered by :class:`Pong`."""

    request_id: str
    epoch: int


class Step(NamedTuple):
    """``rows`` consecutive positions of one generation, from ``position`` on.

    The edge samples after each of the last ``wanted`` rows: the last stage returns those, and
    nothing if there are none. A ``replay`` rebuilds a cache; it goes only as far as nodes are new.
    """

    request_id: str
    epoch: int
    position: int
    rows: int
    wanted: int
    replay: bool


@dataclass(frozen=True, slots=True)
class Steps:
    """Node to node: hidden states ``[rows, width]`` of several steps, one after the other.

    All that one forward gives one next node is one message, so that a batch costs a hop hardly more
    than one generation does.
    """

    steps: list[Step]
    dtype: str
    width: int
    data: bytes | memoryview

    @property
    def rows(self) -> int:
        return sum(step.rows for step in self.steps)


@dataclass(frozen=True, slots=True)
class Token:
    """Edge to readers: token ``index`` (from 0). ``text`` may be empty (half a character).
    ``logprobs``: packed (:mod:`mesh.wire.logprobs`); empty if nobody asked for them."""

    request_id: str
    epoch: int
    index: int
    token_id: int
    text: str
    logprobs: bytes = b""


@dataclass(frozen=True, slots=True)
class Ended:
    """Edge to supervisor: ``count`` tokens were written; ``reason`` is ``stop`` or ``length``.
    ``accepted_drafts`` and ``rejected_drafts`` count draft tokens of this epoch."""

    request_id: str
    epoch: int
    reason: str
    count: int
    accepted_drafts: int = 0
    rejected_drafts: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRefused:
    """Node to supervisor: this generation cannot go on here (``kv_full``, ``gap``, ``moved``, ...).
    ``node_id`` is the node at fault: the sender of a bad step, else the one that refuses."""

    request_id: str
    epoch: int
    node_id: str
    code: str


@dataclass(frozen=True, slots=True)
class Pong:
    """Node to supervisor: it runs, and has computed the first ``positions`` positions of the
    generation."""

    request_id: str
    epoch: int
    node_id: str
    positions: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Gateway to supervisor: the user asked for the end; Postgres has the request."""

    request_id: str
    epoch: int


ControlMessage = (
    Open
    | OpenEdge
    | PrefixCached
    | PrefixReused
    | Close
    | StopEpoch
    | Ping
    | Token
    | Ended
    | GenerationRefused
    | Pong
    | Cancel
)
"""What is said of one generation: it has a ``request_id`` and an ``epoch``."""

Message = ControlMessage | Steps
