"""Every message that can be decoded, in any order, to the nodes of a route: no engine raises, and
generations that run meanwhile get the tokens that they get alone."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh import wire
from mesh.errors import WireError
from mesh.wire import (
    DTYPES,
    Cancel,
    Close,
    Ended,
    GenerationRefused,
    Message,
    Open,
    OpenEdge,
    Ping,
    Pong,
    PrefixCached,
    Prompt,
    Resume,
    SamplingParams,
    StageAssignment,
    Step,
    Steps,
    StopEpoch,
    Token,
)
from mesh.wire.limits import MAX_STOP_TEXT, MAX_STOP_TEXTS
from node_runner.engine.engine import Engine
from node_runner.engine.model.span_model import SpanModel
from node_runner.outputs import EngineOutput
from tests.support.engine.models import save_random
from tests.support.engine.pipeline import GREEDY, Pipeline, load_span
from tests.support.engine.sampling import ALL_PARAMS
from tests.support.engine.tokenizers import byte_fallback_bpe

WIDTH, VOCABULARY, CONTEXT = 64, 300, 512
STAGES = 3
KV_BUDGET = 8 * 10**6
TOKENS = 10
LLAMA = byte_fallback_bpe()

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=3, stop=[])
PENALIZED = replace(ALL_PARAMS, logit_bias={20: -100.0, 7: 1.5})
BYSTANDERS = {
    "bystander greedy": ([0, *range(20, 60)], GREEDY),
    "bystander sampled": ([0, 7, 280, 7, 280], SAMPLED),
    "bystander penalized": ([0, 7, 280, 7, 280], PENALIZED),
    "bystander long": ([0, *range(20, 290)], SAMPLED),
}

ATTACKS = st.sampled_from(["attack 0", "attack 1", "attack 2"])
EXTREME = [-(2**63), -1, 0, 1, 2, CONTEXT, CONTEXT + 1, 2**31, 2**32, 2**63 - 1, 2**64 - 1]


def likely(*usual: Any, others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what is usual, so that attacks get far."""
    return st.one_of(*[st.sampled_from(usual)] * 5, others)


INTEGERS = st.sampled_from(EXTREME)
EPOCHS = likely(1, 2, 3, others=INTEGERS)
POSITIONS = likely(0, 1, 3, 8, 16, 31, 32, 33, others=INTEGERS)
NODES = likely("0", "1", "2", others=st.text(max_size=3))
NUMBERS = st.sampled_from(
    [0, 0.0, 5e-324, 1e-300, 0.5, 1, 1.0, 2, 1e300, math.inf, -math.inf, math.nan, -1, 2**63]
)
TOKEN_IDS = st.lists(
    likely(*range(0, VOCABULARY, 7), others=st.one_of(INTEGERS, st.just(VOCABULARY))), max_size=40
)
TEXTS = st.lists(
    likely("a", "�", "", others=st.text(max_size=2 * MAX_STOP_TEXT)), max_size=MAX_STOP_TEXTS + 1
)
HASHES = st.lists(st.sampled_from([bytes([letter]) * 16 for letter in range(4)]), max_size=4)

ASSIGNMENTS = st.builds(
    StageAssignment,
    stage=likely(0, 1, 2, others=INTEGERS),
    stages=likely(3, others=INTEGERS),
    edge_node=NODES,
    previous_node=NODES,
    next_node=NODES,
    capacity=likely(60, 200, others=INTEGERS),
    expires_in=likely(60, others=INTEGERS),
    start_layer=st.integers(0, 3),
    end_layer=st.integers(0, 4),
)
RESUMES = st.builds(Resume, keep=st.booleans(), replay=st.booleans(), known=POSITIONS)
PROMPTS = st.builds(
    Prompt,
    token_ids=TOKEN_IDS,
    generated=st.one_of(st.just([]), TOKEN_IDS),
    max_tokens=likely(3, 9, 20, others=INTEGERS),
    sampling=st.builds(
        SamplingParams,
        temperature=NUMBERS,
        top_p=likely(1.0, 0.5, others=NUMBERS),
        seed=INTEGERS,
        stop=TEXTS,
        top_k=likely(0, 1, 40, others=INTEGERS),
        min_p=likely(0.0, 0.1, others=NUMBERS),
        repetition_penalty=likely(None, 1.2, others=NUMBERS),
        frequency_penalty=likely(0.0, 0.5, others=NUMBERS),
        presence_penalty=likely(0.0, -0.5, others=NUMBERS),
        logit_bias=st.one_of(
            st.just({}),
            st.dictionaries(
                likely(*range(0, VOCABULARY, 7), others=INTEGERS),
                likely(-100, 1.5, others=NUMBERS),
                max_size=5,
            ),
        ),
        logprobs=likely(None, 0, 3, others=INTEGERS),
    ),
)
STEP = st.builds(
    Step,
    request_id=ATTACKS,
    epoch=EPOCHS,
    position=POSITIONS,
    rows=st.sampled_from([1, 1, 2, 5, 17, 40]),
    wanted=st.sampled_from([0, 1, 2]),
    replay=st.booleans(),
)


@st.composite
def hidden_states(draw: st.DrawFn) -> Steps:
    """Steps whose bytes are as many as their shape says, whatever they mean."""
    steps = draw(st.lists(STEP, min_size=1, max_size=4))
    dtype = draw(likely("float32", others=st.sampled_from(DTYPES)))
    width = draw(likely(WIDTH, others=st.sampled_from([1, WIDTH - 1, WIDTH + 1])))
    size = wire.tensor_bytes(dtype, sum(step.rows for step in steps), width)
    kind = draw(st.sampled_from(["normal", "normal", "nan", "infinite", "huge", "noise", "zero"]))
    if dtype == "float32" and kind == "normal":
        torch.manual_seed(size)
        data = torch.randn(size // 4).numpy().tobytes()
    else:
        pattern = {
            "normal": b"\x00\x3c",
            "nan": b"\x00\x00\xc0\x7f",
            "infinite": b"\x00\x00\x80\xff",
            "huge": b"\x00\x00\x7f\x7f",
            "noise": draw(st.binary(min_size=4, max_size=16)),
            "zero": b"\x00",
        }[kind]
        data = (pattern * size)[:size]
    return Steps(steps, dtype, width, data)


ABOUT = {"request_id": ATTACKS, "epoch": EPOCHS}
OPENING = {**ABOUT, "stage_assignment": ASSIGNMENTS, "resume": RESUMES, "prefix": HASHES}
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(OpenEdge, **OPENING, prompt=PROMPTS),
    st.builds(Open, **OPENING),
    hidden_states(),
    hidden_states(),
    st.builds(PrefixCached, **ABOUT, stage=likely(1, 2, others=INTEGERS), positions=POSITIONS),
    st.builds(Close, **ABOUT),
    st.builds(StopEpoch, **ABOUT),
    st.builds(Ping, **ABOUT),
    st.builds(Token, **ABOUT, index=INTEGERS, token_id=INTEGERS, text=st.text(max_size=3)),
    st.builds(Ended, **ABOUT, reason=st.text(max_size=3), count=INTEGERS),
    st.builds(GenerationRefused, **ABOUT, node_id=NODES, code=st.text(max_size=3)),
    st.builds(Pong, **ABOUT, node_id=NODES, positions=INTEGERS),
    st.builds(Cancel, **ABOUT),
)

ROUTES = st.builds(
    lambda request_id, epoch, prompt, prefix, resume: (request_id, epoch, prompt, prefix, resume),
    ATTACKS,
    st.integers(1, 4),
    PROMPTS,
    HASHES,
    RESUMES,
)
"""Whole generations, as a supervisor opens them."""

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, STAGES - 1), MESSAGES),
        st.tuples(st.just("repeat"), st.integers(0, STAGES - 1), MESSAGES),
        st.tuples(st.just("open"), st.just(0), ROUTES),
        st.tuples(st.just("step"), st.integers(0, STAGES - 1), st.none()),
        st.tuples(st.just("run"), st.just(0), st.none()),
    ),
    max_size=25,
)


class Mesh(Pipeline):
    """A pipeline in which anybody may send anything."""

    def take(self, output: EngineOutput) -> None:
        """Only bystanders' tokens are kept, and what is sent to nobody is lost."""
        to = getattr(output, "to", None)
        if to is not None:
            if to in ("0", "1", "2"):
                self.send(int(to), output.message)  # type: ignore[union-attr]
        elif output.request_id in BYSTANDERS:  # type: ignore[union-attr]
            super().take(output)

    def send(self, stage: int, message: Message) -> None:
        """What cannot be decoded is dropped, as transports do."""
        try:
            super().send(stage, message)
        except WireError:
            return
        except (OverflowError, UnicodeEncodeError):  # nobody can encode it
            return


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More would wait for each other longer than these products take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> list[SpanModel]:
    folder = save_random(tmp_path_factory.mktemp("model"), LLAMA)
    cache = tmp_path_factory.mktemp("spans")
    return [load_span(folder, cut, cache) for cut in ((0, 1), (1, 2), (2, 4))]


@pytest.fixture(scope="module")
def draft_span(tmp_path_factory: pytest.TempPathFactory) -> SpanModel:
    folder = save_random(tmp_path_factory.mktemp("draft"), LLAMA, num_hidden_layers=1)
    return load_span(folder, (0, 1), tmp_path_factory.mktemp("draft_spans"))


def with_bystanders(spans: list[SpanModel], draft_span: SpanModel | None) -> Mesh:
    mesh = Mesh(
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
    for request_id, (prompt, sampling) in BYSTANDERS.items():
        mesh.open(request_id, prompt, max_tokens=TOKENS, sampling=sampling)
    mesh.step_all()
    return mesh


def finish(mesh: Mesh) -> None:
    """Until the bystanders have ended, which they must within few steps."""
    for _ in range(400):
        if BYSTANDERS.keys() <= mesh.ended.keys():
            return
        mesh.step_all()
    raise AssertionError(f"still waiting; refused: {mesh.refused}")


@pytest.fixture(scope="module")
def expected(spans: list[SpanModel]) -> dict[str, list[int]]:
    mesh = with_bystanders(spans, None)
    finish(mesh)
    return {request_id: mesh.tokens(request_id) for request_id in BYSTANDERS}


def open_route(mesh: Mesh, route: tuple[str, int, Prompt, list[bytes], Resume]) -> None:
    request_id, epoch, prompt, prefix, resume = route
    for stage in range(STAGES):
        own = StageAssignment(
            stage=stage,
            stages=STAGES,
            edge_node="0",
            previous_node=str((stage - 1) % STAGES),
            next_node=str((stage + 1) % STAGES),
            capacity=max(1, min(200, len(prompt.token_ids) + prompt.max_tokens)),
            expires_in=60,
            start_layer=stage,
            end_layer=stage + 1,
        )
        opening = (request_id, epoch, own, resume, prefix)
        mesh.send(stage, Open(*opening) if stage else OpenEdge(*opening, prompt))


def act(mesh: Mesh, action: str, stage: int, what: Any) -> None:
    match action:
        case "send":
            mesh.send(stage, what)
        case "repeat":
            mesh.send(stage, what)
            mesh.send(stage, what)
        case "open":
            open_route(mesh, what)
        case "step":
            mesh.step(stage)
        case "run":
            for _ in range(10):
                mesh.step_all()


def check(
    spans: list[SpanModel],
    draft_span: SpanModel | None,
    expected: dict[str, list[int]],
    actions: list[tuple[str, int, Any]],
) -> None:
    mesh = with_bystanders(spans, draft_span)
    for action in actions:
        act(mesh, *action)
    finish(mesh)
    assert {request_id: mesh.tokens(request_id) for request_id in BYSTANDERS} == expected
    assert not {refused.request_id for refused in mesh.refused} & BYSTANDERS.keys()
    for request_id in (*BYSTANDERS, "attack 0", "attack 1", "attack 2"):
        mesh.close(request_id, epoch=2**64 - 1)
    mesh.run()
    for engine in mesh.engines:
        engine.prefix_cache.evict_all()
        assert engine.pool.used_bytes == 0, "KV was lost"
        if engine.edge.draft_model is not None:
            assert engine.edge.draft_model.pool.used_bytes == 0


FUZZ = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@settings(FUZZ, max_examples=10)
@given(actions=ACTIONS)
def test_no_message_harms_an_engine_or_a_bystander(
    spans: list[SpanModel],
    draft_span: SpanModel,
    expected: dict[str, list[int]],
    actions: list[tuple[str, int, Any]],
) -> None:
    check(spans, draft_span, expected, actions)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(FUZZ, max_examples=500)
@given(actions=ACTIONS)
def test_no_message_harms_an_engine_or_a_bystander_at_length(
    spans: list[SpanModel],
    draft_span: SpanModel,
    expected: dict[str, list[int]],
    actions: list[tuple[str, int, Any]],
) -> None:
    check(spans, draft_span, expected, actions)


@settings(FUZZ, max_examples=20)
@given(
    prompt=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    temperature=st.one_of(st.just(0.0), st.just(5e-324), st.floats(0, 2)),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 2**63 - 1),
    stop=st.lists(st.text(min_size=1, max_size=MAX_STOP_TEXT), max_size=MAX_STOP_TEXTS),
    max_tokens=st.integers(1, 30),
)
def test_every_prompt_that_passes_the_gateway_ends_as_it_should(
    spans: list[SpanModel],
    draft_span: SpanModel,
    prompt: str,
    temperature: float,
    top_p: float,
    seed: int,
    stop: list[str],
    max_tokens: int,
) -> None:
    """With the text of its tokens, up to a stop text."""
    token_ids = LLAMA.encode(prompt).ids
    pipeline = Pipeline(
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
    sampling = SamplingParams(temperature, top_p, seed, stop)
    pipeline.open("attack", token_ids, max_tokens=max_tokens, sampling=sampling)
    pipeline.run()
    assert pipeline.refused == []
    assert pipeline.ended["attack"].count == len(pipeline.tokens("attack")) <= max_tokens
    assert not any(text in pipeline.text("attack") for text in stop)
    before, tokens = LLAMA.decode(token_ids), pipeline.tokens("attack")
    whole = LLAMA.decode(token_ids + tokens)
    if not stop and whole.startswith(before) and not before.endswith("�"):
        assert before + pipeline.text("attack") == whole
