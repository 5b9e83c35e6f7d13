"""A generation whose work raises on every node: it ends alone, and what runs beside it goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from mesh.wire import SamplingParams
from mesh.wire.refusal_codes import GENERATION_FAILED
from node_runner.engine import edge, output_batcher
from node_runner.engine.attention.prefix_cache import PrefixCache
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.decoding.detokenizer import Detokenizer
from node_runner.engine.decoding.draft_model import DraftModel
from node_runner.engine.decoding.penalties import Penalties
from node_runner.engine.decoding.speculation import PromptLookup
from node_runner.engine.device.isolation import isolated
from node_runner.engine.edge import Edge
from node_runner.engine.engine import Engine
from node_runner.engine.generation import Decoding
from node_runner.engine.model.span_model import SpanModel
from node_runner.engine.replay_buffer import ReplayBuffer
from tests.support.engine.models import save_chain, save_random
from tests.support.engine.pipeline import GREEDY, KV_BUDGET, Pipeline, load_span
from tests.support.engine.tokenizers import byte_fallback_bpe

POISON = 299
"""A token that is in the attacker's prompt alone."""

POISONED = SamplingParams(0.9, 0.9, 666, ["poison"], frequency_penalty=0.5, logprobs=2)
BYSTANDERS = {f"bystander {number}": [0, *range(20, 30 + 7 * number)] for number in range(4)}
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=3, stop=[])
TOKENS = 12
SECRET = "xylophone quokka"
"""What an exception may quote."""


class PanicException(BaseException):
    """As Rust code raises it."""


class Poison:
    """Makes a function raise where the attacker's generation is concerned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
        self._monkeypatch = monkeypatch
        self.pipeline = pipeline
        self.error: BaseException = ValueError("what the attacker made of it")
        self.raised = 0

    def into(self, owner: object, name: str, concerned: Callable[..., bool]) -> None:
        original = getattr(owner, name)

        def poisoned(*args: Any, **kwargs: Any) -> Any:
            if concerned(*args, **kwargs):
                self.raised += 1
                raise self.error
            return original(*args, **kwargs)

        self._monkeypatch.setattr(owner, name, poisoned)

    def into_layers(self, stage: int) -> None:
        """After all layers have written their KV."""
        span = self.pipeline.engines[stage].span
        original = span._layers

        def poisoned(hidden: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
            output = original(hidden, batch)
            if self.runs_in(batch, stage):
                self.raised += 1
                raise self.error
            return output

        self._monkeypatch.setattr(span, "_layers", poisoned)

    def runs_in(self, batch: RaggedBatch, stage: int) -> bool:
        generation = self.pipeline.engines[stage].generations.get("attack")
        caches = [segment.cache for segment in batch.segments]
        return generation is not None and generation.cache in caches


def _stops(self: Detokenizer, *_: object) -> bool:
    return self._stop == POISONED.stop


def _asks(requests: Sequence[Any]) -> bool:
    return any(request.sampling_params == POISONED for request in requests)


PLACES: dict[str, Callable[[Poison], None]] = {
    "opening": lambda p: p.into(Detokenizer, "__init__", lambda *args: args[-1] == POISONED.stop),
    "hidden states that come": lambda p: p.into(
        Edge, "receive", lambda _, generation, *__: generation.request_id == "attack"
    ),
    "readiness": lambda p: p.into(Decoding, "mark_ready", lambda *_: True),
    "scheduling": lambda p: p.into(
        edge, "_next_input", lambda generation: generation.request_id == "attack"
    ),
    "embedding": lambda p: p.into(
        p.pipeline.engines[0].span, "embed", lambda ids, _: POISON in ids
    ),
    "layers of the edge": lambda p: p.into_layers(0),
    "layers of a middle node": lambda p: p.into_layers(1),
    "layers of the last node": lambda p: p.into_layers(2),
    "sampling": lambda p: p.into(edge, "sample", lambda _, params, *__, **___: POISONED in params),
    "penalties": lambda p: p.into(Penalties, "index", lambda _, tokens: POISON in tokens),
    "log-probabilities": lambda p: p.into(
        edge, "packed_logprobs", lambda _, __, params: POISONED in params
    ),
    "text": lambda p: p.into(Detokenizer, "push", _stops),
    "looking drafts up": lambda p: p.into(
        PromptLookup, "draft", lambda _, tokens, __: POISON in tokens
    ),
    "draft model": lambda p: p.into(DraftModel, "draft", lambda _, requests: _asks(requests)),
    "keeping hidden states": lambda p: p.into(
        ReplayBuffer,
        "put",
        lambda self, *_: any(
            engine.generations.get("attack") is not None
            and engine.generations["attack"].replay_buffer is self
            for engine in p.pipeline.engines
        ),
    ),
    "sending": lambda p: p.into(
        output_batcher,
        "Steps",
        lambda steps, *_: any(step.request_id == "attack" for step in steps),
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("model"), byte_fallback_bpe())


@pytest.fixture(scope="module")
def spans(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SpanModel]:
    cache = tmp_path_factory.mktemp("spans")
    return [load_span(model, cut, cache) for cut in ((0, 2), (2, 3), (3, 4))]


@pytest.fixture(scope="module")
def draft_span(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SpanModel:
    return load_span(model, (0, 4), tmp_path_factory.mktemp("draft"))


@pytest.fixture
def pipeline(spans: list[SpanModel], draft_span: SpanModel) -> Pipeline:
    return Pipeline(
        [
            Engine(
                span,
                node_id=str(stage),
                kv_budget_bytes=KV_BUDGET,
                draft_span=draft_span if span.edge else None,
            )
            for stage, span in enumerate(spans)
        ]
    )


def open_all(pipeline: Pipeline) -> None:
    for number, (request_id, prompt) in enumerate(BYSTANDERS.items()):
        sampling = SAMPLED if number % 2 else GREEDY
        pipeline.open(request_id, prompt, max_tokens=TOKENS, sampling=sampling)


@pytest.fixture(scope="module")
def expected(spans: list[SpanModel]) -> dict[str, list[int]]:
    """The bystanders' tokens where nobody attacks."""
    pipeline = Pipeline(
        [
            Engine(span, node_id=str(stage), kv_budget_bytes=KV_BUDGET, speculate=False)
            for stage, span in enumerate(spans)
        ]
    )
    open_all(pipeline)
    pipeline.run()
    return {request_id: pipeline.tokens(request_id) for request_id in BYSTANDERS}


@pytest.mark.parametrize(
    "error", [ValueError(SECRET), PanicException(SECRET)], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("place", PLACES)
def test_a_generation_that_raises_ends_alone(
    pipeline: Pipeline,
    expected: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: BaseException,
) -> None:
    poison = Poison(monkeypatch, pipeline)
    poison.error = error
    PLACES[place](poison)
    prefix = [b"a name"] if place == "readiness" else []
    open_all(pipeline)
    for _ in range(4):
        pipeline.step_all()
    with capture_logs() as logs:
        pipeline.open(
            "attack",
            [POISON, *range(40, 60), 40, 41],
            max_tokens=TOKENS,
            sampling=POISONED,
            prefix=prefix,
        )
        pipeline.run()
    assert poison.raised
    assert {request_id: pipeline.tokens(request_id) for request_id in BYSTANDERS} == expected
    assert {(each.request_id, each.code) for each in pipeline.refused} == {
        ("attack", GENERATION_FAILED)
    }
    [failure] = [entry for entry in logs if entry["event"] == "generation_failed"]
    assert failure["error"] == type(error).__name__
    assert SECRET not in str(failure.values())
    for request_id in ("attack", *BYSTANDERS):
        pipeline.close(request_id)
    pipeline.run()
    assert [engine.pool.used_bytes for engine in pipeline.engines] == [0, 0, 0]


def test_one_that_raises_when_it_is_closed_is_forgotten(
    pipeline: Pipeline, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = Poison(monkeypatch, pipeline)
    poison.into(PrefixCache, "release", lambda _, __, prefix: bool(prefix))
    open_all(pipeline)
    pipeline.open("attack", [POISON, *range(40, 90)], max_tokens=1, prefix=[b"a name"])
    pipeline.run()
    pipeline.close("attack")
    pipeline.run()
    assert poison.raised == 3
    assert all("attack" not in engine.generations for engine in pipeline.engines)
    assert {request_id: pipeline.tokens(request_id) for request_id in BYSTANDERS} == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_what_is_fatal_ends_the_node_and_says_so(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    poison = Poison(monkeypatch, pipeline)
    poison.error = error
    poison.into_layers(0)
    open_all(pipeline)
    pipeline.open("attack", [POISON, 40], max_tokens=TOKENS)
    with capture_logs() as logs, pytest.raises(type(error)):
        pipeline.run()
    assert not pipeline.refused
    said = [entry["error"] for entry in logs if entry["log_level"] == "critical"]
    assert said == ([] if isinstance(error, KeyboardInterrupt) else [type(error).__name__])


def test_a_lack_of_memory_is_met_by_smaller_batches() -> None:
    batches: list[list[int]] = []

    def work(batch: Sequence[int]) -> list[int]:
        batches.append(list(batch))
        if len(batch) > 2 or len(batches) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [-item for item in batch]

    failed: list[int] = []
    outputs = isolated(work, [1, 2, 3, 4, 5], lambda item, _: failed.append(item))
    assert outputs == [-1, -2, -3, -4, -5]
    assert failed == []
    assert [3] in batches


def test_logits_that_are_not_finite_end_their_generation(tmp_path: Path) -> None:
    """Also in the draft model, which then drafts nothing."""
    before, overflow, other = 270, 271, 272
    folder = save_chain(
        tmp_path, byte_fallback_bpe(), {before: overflow, other: other}, overflowing=overflow
    )
    draft = load_span(folder, (0, 2), tmp_path / "draft")
    pipeline = Pipeline.cut(folder, [0, 1, 2], tmp_path / "spans", draft_span=draft)
    pipeline.open("bystander", [other], max_tokens=TOKENS)
    pipeline.open("attack", [before], max_tokens=TOKENS)
    pipeline.run()
    assert pipeline.tokens("attack") == [overflow]
    assert [(each.request_id, each.node_id, each.code) for each in pipeline.refused] == [
        ("attack", "0", "not_finite")
    ]
    assert pipeline.tokens("bystander") == [other] * TOKENS
