"""The engine gives transformers' own tokens, whatever the cut and whatever else is in the batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from mesh.wire import SamplingParams
from mesh.wire.logprobs import unpack_logprobs
from node_runner.engine.engine import Engine
from node_runner.outputs import NodeMessage
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import GREEDY, KV_BUDGET, Pipeline, load_span, one_step
from tests.support.engine.prompts import PROMPTS, encoded
from tests.support.engine.sampling import ALL_PARAMS

CUTS = {1: [0, 6], 2: [0, 3, 6], 3: [0, 2, 4, 6], 6: [0, 1, 2, 3, 4, 5, 6]}
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return encoded(PROMPTS)


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    """What transformers' `generate` gives, end-of-text token included."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    return [_generate(model, prompt) for prompt in prompts]


def _generate(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    output = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@pytest.fixture(scope="module")
def pipeline(request: pytest.FixtureRequest, cache: Path) -> Pipeline:
    return Pipeline.cut(DEMO_MODEL, CUTS[request.param], cache)


def _each_cut(*fast: int) -> pytest.MarkDecorator:
    """A test of each cut, those but ``fast`` among the slow tests."""
    cuts = [
        pytest.param(spans, id=f"{spans} spans", marks=() if spans in fast else pytest.mark.slow)
        for spans in CUTS
    ]
    return pytest.mark.parametrize("pipeline", cuts, indirect=True)


@_each_cut()
def test_greedy_tokens_equal_transformers_one_after_the_other(
    pipeline: Pipeline, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    for number, prompt in enumerate(prompts):
        pipeline.open(f"alone {number}", prompt, max_tokens=NEW_TOKENS)
        pipeline.run()
        assert pipeline.tokens(f"alone {number}") == expected[number], PROMPTS[number]


@_each_cut(3)
def test_greedy_tokens_equal_transformers_all_at_once(
    pipeline: Pipeline, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    pipeline.batches.clear()
    for number, prompt in enumerate(prompts):
        pipeline.open(f"batched {number}", prompt, max_tokens=NEW_TOKENS)
    pipeline.run()
    for number in range(len(prompts)):
        assert pipeline.tokens(f"batched {number}") == expected[number], PROMPTS[number]
    assert max(pipeline.batches) >= len(prompts) // len(pipeline.engines)


@pytest.mark.parametrize("new_tokens", [16, pytest.param(NEW_TOKENS, marks=pytest.mark.slow)])
def test_sampled_tokens_do_not_depend_on_the_cut(
    cache: Path, prompts: list[list[int]], new_tokens: int
) -> None:
    sampling = SamplingParams(temperature=0.9, top_p=0.95, seed=1234, stop=[])
    texts = []
    for cuts in CUTS.values():
        pipeline = Pipeline.cut(DEMO_MODEL, cuts, cache)
        for number, prompt in enumerate(prompts):
            pipeline.open(f"{number}", prompt, max_tokens=new_tokens, sampling=sampling)
        pipeline.run()
        texts.append([pipeline.tokens(f"{number}") for number in range(len(prompts))])
    assert all(text == texts[0] for text in texts)
    assert len({tuple(tokens) for tokens in texts[0]}) == len(prompts)


def test_another_seed_gives_another_text(cache: Path, prompts: list[list[int]]) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[2], cache)
    for seed in range(4):
        sampling = SamplingParams(temperature=1.0, top_p=1.0, seed=seed, stop=[])
        pipeline.open(f"{seed}", prompts[0], max_tokens=20, sampling=sampling)
    pipeline.run()
    assert len({tuple(pipeline.tokens(f"{seed}")) for seed in range(4)}) == 4


@pytest.mark.parametrize("speculate", [False, True])
def test_tokens_do_not_depend_on_what_others_ask_for(
    cache: Path, prompts: list[list[int]], speculate: bool
) -> None:
    """Nor do their log-probabilities, but for the last bits of float32."""
    hows = [
        GREEDY,
        ALL_PARAMS,
        replace(ALL_PARAMS, temperature=0.0, repetition_penalty=None, logprobs=0),
        replace(ALL_PARAMS, seed=8, logprobs=None, logit_bias={}, top_k=3),
    ]
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[2], cache, speculate=speculate)
    asked = [*enumerate(zip(prompts, hows, strict=False))]
    for number, (prompt, how) in asked:
        pipeline.open(f"alone {number}", prompt, max_tokens=32, sampling=how)
        pipeline.run()
    for number, (prompt, how) in asked:
        pipeline.open(f"beside {number}", prompt, max_tokens=32, sampling=how)
    pipeline.run()
    for number, (_, how) in asked:
        alone, beside = pipeline.written[f"alone {number}"], pipeline.written[f"beside {number}"]
        assert [token.token_id for token in beside] == [token.token_id for token in alone]
        for one, other in zip(alone, beside, strict=True):
            first, second = unpack_logprobs(one.logprobs), unpack_logprobs(other.logprobs)
            assert len(first) == (0 if how.logprobs is None else 1 + how.logprobs)
            assert [entry.token_id for entry in first] == [entry.token_id for entry in second]
            values = [entry.logprob for entry in second]
            assert [entry.logprob for entry in first] == pytest.approx(values, abs=1e-4)


@torch.inference_mode()
def test_log_probabilities_are_those_of_transformers(cache: Path, prompts: list[list[int]]) -> None:
    """Of the model itself, whatever penalties and temperature make of them; of accepted draft
    tokens, too."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    prompt = [0, *[300, 301, 302, 303, 304, 305, 306] * 12]
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[2], cache)
    pipeline.open("job", prompt, max_tokens=80, sampling=ALL_PARAMS)
    pipeline.open("greedy", prompt, max_tokens=80, sampling=replace(GREEDY, logprobs=1))
    pipeline.run()
    assert pipeline.ended["greedy"].accepted_drafts > 0
    for job in ("job", "greedy"):
        tokens = pipeline.tokens(job)
        logits = model(torch.tensor([prompt + tokens])).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
        for token, expected in zip(pipeline.written[job], logprobs, strict=True):
            first, *likeliest = unpack_logprobs(token.logprobs)
            assert first.token_id == token.token_id
            assert first.logprob == pytest.approx(float(expected[first.token_id]), abs=1e-3)
            top = expected.topk(len(likeliest))
            values = [entry.logprob for entry in likeliest]
            assert values == pytest.approx(top.values.tolist(), abs=1e-3)
            if job == "greedy":
                assert first == likeliest[0]


@pytest.mark.parametrize("so_far", [1, 10, 63])
def test_a_generation_continues_on_other_nodes_with_the_same_tokens(
    cache: Path, prompts: list[list[int]], expected: list[list[int]], so_far: int
) -> None:
    """A new epoch prefills the prompt and the tokens that readers have, and continues."""
    other = Pipeline.cut(DEMO_MODEL, CUTS[3], cache)
    other.pretend_written("moved", expected[0][:so_far])
    other.open("moved", prompts[0], max_tokens=NEW_TOKENS, epoch=2, generated=expected[0][:so_far])
    other.run()
    assert other.tokens("moved") == expected[0]


def test_a_repeated_step_is_harmless(
    cache: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    """Every message between nodes arrives twice; its position makes that harmless."""
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[3], cache)
    once = pipeline.send

    def twice(stage: int, message: object) -> None:
        once(stage, message)
        once(stage, message)

    pipeline.send = twice  # type: ignore[method-assign]
    pipeline.open("doubled", prompts[0], max_tokens=NEW_TOKENS)
    pipeline.run()
    assert pipeline.tokens("doubled") == expected[0]


def test_a_lost_step_is_refused_as_a_gap(cache: Path, prompts: list[list[int]]) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[2], cache)
    pipeline.open("gap", prompts[0], max_tokens=5)
    pipeline.step(1)
    data = bytes(4 * pipeline.engines[1].span.hidden_size)
    (refused,) = pipeline.engines[1].step([one_step("gap", position=7, data=data)])
    assert refused.code == "gap"
    assert refused.node_id == "1"
    again = pipeline.engines[1].step([one_step("gap", position=0, data=data)])
    assert again == [], "this epoch is over"


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("wire_error", {"data": bytes(12)}),
        ("not_finite", {"data": b"\x00\x00\xc0\x7f" * 256}),
        ("capacity", {"rows": 100, "data": bytes(100 * 1024)}),
    ],
)
def test_a_bad_step_is_blamed_on_its_sender(
    cache: Path, prompts: list[list[int]], code: str, changed: dict[str, Any]
) -> None:
    """And harms no other generation: another one's step in the same batch is computed."""
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[3], cache)
    for request_id in ("bad", "good"):
        pipeline.open(request_id, prompts[0], max_tokens=5)
    middle = pipeline.engines[1]
    pipeline.step(1)
    good = one_step("good", data=bytes(1024))
    results = middle.step([one_step("bad", **changed), good])
    results += middle.step([])
    refused, forward = sorted(results, key=lambda result: isinstance(result, NodeMessage))
    assert (refused.request_id, refused.node_id, refused.code) == ("bad", "0", code)
    assert [step.request_id for step in forward.message.steps] == ["good"]
    assert middle.generations["bad"].cache.length == 0


def test_work_of_an_older_epoch_is_ignored(cache: Path, prompts: list[list[int]]) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[2], cache)
    pipeline.open("job", prompts[0], max_tokens=5, epoch=3)
    pipeline.step(1)
    stale = one_step("job", epoch=2, data=bytes(4 * pipeline.engines[1].span.hidden_size))
    assert pipeline.engines[1].step([stale]) == []


def test_generations_are_admitted_by_reservation(cache: Path, prompts: list[list[int]]) -> None:
    """KV for ten: the eleventh is refused at once, and admitted when one has ended."""
    span = load_span(DEMO_MODEL, (0, 6), cache)
    capacity = len(prompts[0]) + 5
    blocks = -(-capacity // span.kv_shape.block_size)
    budget = 10 * blocks * span.kv_shape.bytes_per_block
    pipeline = Pipeline([Engine(span, node_id="0", kv_budget_bytes=budget)])
    for number in range(11):
        pipeline.open(f"{number}", prompts[0], max_tokens=5)
    pipeline.run()
    assert [(refused.request_id, refused.code) for refused in pipeline.refused] == [
        ("10", "kv_full")
    ]
    assert len(pipeline.ended) == 10
    assert pipeline.engines[0].pool.used_bytes == 0
    pipeline.open("10", prompts[0], max_tokens=5, epoch=2)
    pipeline.run()
    assert pipeline.ended["10"].count == 5


def test_no_more_generations_than_were_asked_for_are_admitted(
    cache: Path, prompts: list[list[int]]
) -> None:
    """However much KV is free; and while there are that many, routes see none free."""
    span = load_span(DEMO_MODEL, (0, 6), cache)
    engine = Engine(span, node_id="0", kv_budget_bytes=KV_BUDGET, max_generations=2)
    pipeline = Pipeline([engine])
    free = engine.free_kv()
    for number in range(2):
        pipeline.open(f"{number}", prompts[0], max_tokens=5)
    pipeline.step(0)
    assert (engine.free_kv(), engine.kv_capacity()) == (0, free)
    pipeline.open("2", prompts[0], max_tokens=5)
    pipeline.run()
    assert [(refused.request_id, refused.code) for refused in pipeline.refused] == [
        ("2", "kv_full")
    ]
    assert pipeline.ended.keys() == {"0", "1"}
    assert engine.free_kv() == free


def test_closing_frees_the_kv(cache: Path, prompts: list[list[int]]) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[3], cache)
    pipeline.open("job", prompts[0], max_tokens=50)
    for engine, inbox in zip(pipeline.engines, pipeline.inboxes, strict=True):
        engine.step(inbox)
        assert engine.pool.used_bytes > 0
        inbox.clear()
    pipeline.close("job")
    pipeline.run()
    assert [engine.pool.used_bytes for engine in pipeline.engines] == [0, 0, 0]


def test_stop_strings_end_the_text_before_them(
    cache: Path, tokenizer: Tokenizer, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    whole = tokenizer.decode(expected[0])
    stop = whole[10:13]
    sampling = SamplingParams(temperature=0.0, top_p=1.0, seed=0, stop=[stop, "never written"])
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[2], cache)
    pipeline.open("stopped", prompts[0], max_tokens=NEW_TOKENS, sampling=sampling)
    pipeline.run()
    assert pipeline.text("stopped") == whole[: whole.index(stop)]
    assert pipeline.ended["stopped"].reason == "stop"
    assert pipeline.ended["stopped"].count == len(pipeline.tokens("stopped")) < NEW_TOKENS


def test_an_end_that_was_lost_is_sent_again(cache: Path, prompts: list[list[int]]) -> None:
    """All tokens were written, but the message of the end was lost: no token more is generated."""
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[2], cache)
    (end,) = pipeline.engines[0].span.end_tokens
    pipeline.open("job", prompts[0], max_tokens=9, epoch=2, generated=[5, 6, end])
    pipeline.run()
    assert pipeline.tokens("job") == []
    assert (pipeline.ended["job"].reason, pipeline.ended["job"].count) == ("stop", 3)


def test_nor_is_one_more_where_all_were_written(cache: Path) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[2], cache)
    pipeline.open("job", [5], max_tokens=3, epoch=2, generated=[5, 6, 7])
    pipeline.run()
    assert pipeline.tokens("job") == []
    assert (pipeline.ended["job"].reason, pipeline.ended["job"].count) == ("length", 3)


def test_text_pieces_add_up_to_the_decoded_text(
    cache: Path, tokenizer: Tokenizer, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[1], cache)
    for number, prompt in enumerate(prompts):
        pipeline.open(f"{number}", prompt, max_tokens=NEW_TOKENS)
    pipeline.run()
    for number, tokens in enumerate(expected):
        assert pipeline.tokens(f"{number}") == tokens
        assert pipeline.text(f"{number}") == tokenizer.decode(tokens)


def test_a_busy_engine_says_so(cache: Path, prompts: list[list[int]]) -> None:
    """A single span has its next step ready without any message."""
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS[1], cache)
    engine = pipeline.engines[0]
    pipeline.open("job", prompts[0], max_tokens=3, sampling=GREEDY)
    assert not engine.busy
    pipeline.step(0)
    assert engine.busy
