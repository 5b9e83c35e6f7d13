"""A pipeline without processes or Redis: engines that send each other encoded messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch

from mesh import wire
from mesh.wire import (
    Close,
    Ended,
    GenerationRefused,
    Message,
    Open,
    OpenEdge,
    PrefixReused,
    Prompt,
    Resume,
    SamplingParams,
    StageAssignment,
    Step,
    Steps,
    Token,
)
from node_runner.engine.engine import Engine
from node_runner.engine.model.span_checkpoint import prepare_span
from node_runner.engine.model.span_model import SpanModel
from node_runner.outputs import EngineOutput, NodeMessage

GREEDY = SamplingParams(temperature=0.0, top_p=1.0, seed=0, stop=[])
KV_BUDGET = 10**8
AFRESH = Resume(keep=False, replay=False, known=0)


def load_span(
    source: Path,
    layers: tuple[int, int],
    cache: Path,
    *,
    edge: bool | None = None,
    quantization: str = "none",
    dtype: torch.dtype = torch.float32,
    batch_invariant: bool = True,
) -> SpanModel:
    """A span on CPU; with the edge if it is the first one and ``edge`` is not given."""
    edge = layers[0] == 0 if edge is None else edge
    folder, _ = prepare_span(str(source), layers=layers, edge=edge, cache=cache)
    return SpanModel(
        folder,
        edge=edge,
        device=torch.device("cpu"),
        dtype=dtype,
        quantization=quantization,
        batch_invariant=batch_invariant,
    )


def one_step(
    request_id: str, *, epoch: int = 1, position: int = 0, rows: int = 1, data: bytes
) -> Steps:
    """A step of float32 hidden states as wide as ``data`` makes them."""
    step = Step(request_id, epoch, position, rows, 1, False)
    return Steps([step], "float32", len(data) // (4 * rows), data)


@dataclass
class Pipeline:
    """Engines in the order of their layers, and what they gave.

    ``first_index``: of the first token that they write.

    ``batches``: generations of each forward pass. ``positions``: by stage, how many were computed.
    ``reused``: by generation, what the edge says that was copied of its prompt.
    """

    engines: list[Engine]
    written: dict[str, list[Token]] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    refused: list[GenerationRefused] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    reused: dict[str, int] = field(default_factory=dict)
    first_index: int = 0

    def __post_init__(self) -> None:
        self.inboxes: list[list[Message]] = [[] for _ in self.engines]
        self.positions = [0] * len(self.engines)

    @classmethod
    def cut(
        cls,
        source: Path,
        cuts: Sequence[int],
        cache: Path,
        *,
        speculate: bool = True,
        draft_span: SpanModel | None = None,
        quantizations: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Spans between the cuts, which begin with 0 and end with the number of layers.

        ``quantizations``: by span, where there are any.
        """
        spans = [
            load_span(source, span, cache, quantization=how, dtype=dtype)
            for span, how in zip_longest(pairwise(cuts), quantizations, fillvalue="none")
        ]
        return cls(
            [
                Engine(
                    span,
                    node_id=str(stage),
                    kv_budget_bytes=KV_BUDGET,
                    speculate=speculate,
                    draft_span=draft_span if span.edge else None,
                )
                for stage, span in enumerate(spans)
            ]
        )

    def open(
        self,
        request_id: str,
        token_ids: list[int],
        *,
        max_tokens: int,
        sampling: SamplingParams = GREEDY,
        epoch: int = 1,
        generated: Sequence[int] = (),
        prefix: Sequence[bytes] = (),
        resumes: Mapping[int, Resume] = MappingProxyType({}),
    ) -> None:
        """``resumes``: by stage, those that do not begin from the prompt."""
        stages = len(self.engines)
        for stage in reversed(range(stages)):
            stage_assignment = StageAssignment(
                stage=stage,
                stages=stages,
                edge_node="0",
                previous_node=str((stage - 1) % stages),
                next_node=str((stage + 1) % stages),
                capacity=len(token_ids) + max_tokens,
                expires_in=60,
                start_layer=stage,
                end_layer=stage + 1,
            )
            prompt = Prompt(token_ids, list(generated), max_tokens, sampling)
            resume = resumes.get(stage, AFRESH)
            opening = (request_id, epoch, stage_assignment, resume, list(prefix))
            message = Open(*opening) if stage else OpenEdge(*opening, prompt)
            self.send(stage, message)

    def close(self, request_id: str, epoch: int = 1) -> None:
        """Close a generation at every stage."""
        for stage in range(len(self.engines)):
            self.send(stage, Close(request_id, epoch))

    def send(self, stage: int, message: Message) -> None:
        """Put a message into a stage's inbox, encoded and decoded as the wire does."""
        entry = {key: bytes(value) for key, value in wire.encode(message).items()}
        self.inboxes[stage].append(wire.decode(entry))

    def run(self) -> None:
        """Until no engine has anything to do."""
        while self.step_all():
            pass

    def step_all(self) -> bool:
        """One step of each engine. Whether any had something to do, or has more."""
        active = [self.step(stage) for stage in range(len(self.engines))]
        return any(active)

    def step(self, stage: int) -> bool:
        """One step of a stage's engine. Whether it had something to do, or has more."""
        messages, self.inboxes[stage] = self.inboxes[stage], []
        engine = self.engines[stage]
        outputs = engine.step(messages)
        for generations, positions in engine.pop_forwards():
            self.batches.append(generations)
            self.positions[stage] += positions
        for output in outputs:
            self.take(output)
        return bool(messages or outputs) or engine.busy

    def tokens(self, request_id: str) -> list[int]:
        """Token ids that were written."""
        return [token.token_id for token in self.written.get(request_id, [])]

    def pretend_written(self, request_id: str, tokens: Sequence[int]) -> None:
        """Readers have these tokens of an earlier epoch."""
        self.written[request_id] = [
            Token(request_id, 1, index, token, "") for index, token in enumerate(tokens)
        ]

    def text(self, request_id: str) -> str:
        """The text of the tokens that were written."""
        return "".join(token.text for token in self.written.get(request_id, []))

    def take(self, output: EngineOutput) -> None:
        """What an engine gave: sent to another, or kept."""
        match output:
            case NodeMessage():
                self.send(int(output.to), output.message)
            case Token():
                tokens = self.written.setdefault(output.request_id, [])
                assert output.index == self.first_index + len(tokens), (
                    "a token was written out of order"
                )
                tokens.append(output)
            case Ended():
                self.ended[output.request_id] = output
            case GenerationRefused():
                self.refused.append(output)
            case PrefixReused():
                self.reused[output.request_id] = output.positions
