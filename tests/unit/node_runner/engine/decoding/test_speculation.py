"""Drafts: where they come from, when they are made, and that no token depends on them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from mesh.wire import SamplingParams
from node_runner.engine.decoding.speculation import (
    FIRST_PAUSE,
    MAX_DRAFT_LENGTH,
    PromptLookup,
    SpeculationPolicy,
)
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import GREEDY, Pipeline
from tests.support.engine.sampling import ALL_PARAMS

CUTS = [0, 2, 4, 6]
PENALIZED = replace(
    ALL_PARAMS,
    temperature=0.5,
    repetition_penalty=0.7,
    frequency_penalty=-0.3,
    logit_bias={**dict.fromkeys(range(300, 307), 2.0), 0: -100.0},
)
"""Such that a text repeats itself, which is where drafts come from."""

REPEATING = [0, *[300, 301, 302, 303, 304, 305, 306] * 12]


def test_what_followed_before_is_drafted() -> None:
    assert PromptLookup().draft([1, 2, 3, 4, 5, 9, 2, 3], 3) == [4, 5, 9]
    assert PromptLookup().draft([1, 2, 3, 4], 3) == []


def test_three_tokens_count_for_more_than_two() -> None:
    text = [7, 1, 2, 50, 8, 1, 2, 60, 7, 1, 2]
    assert PromptLookup().draft(text, 1) == [50]
    assert PromptLookup().draft([*text[:-3], 9, 1, 2], 1) == [60]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_a_lookup_that_grows_with_the_text_drafts_as_a_new_one(text: list[int], count: int) -> None:
    lookup = PromptLookup()
    for end in range(len(text) + 1):
        assert lookup.draft(text[:end], count) == PromptLookup().draft(text[:end], count)


def test_drafting_pauses_where_it_does_not_pay_and_is_tried_again_ever_later() -> None:
    policy = SpeculationPolicy()
    policy.observe(1.0, 0, 1)
    pauses = []
    for _ in range(3):
        assert policy.draft_length() > 0
        policy.observe(1.5, 4, 1)  # all rejected, and slower
        pause = 0
        while policy.draft_length() == 0:
            pause += 1
        pauses.append(pause)
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]


def test_rejected_drafts_that_cost_next_to_nothing_go_on() -> None:
    policy = SpeculationPolicy()
    policy.observe(1.0, 0, 1)
    for _ in range(20):
        assert policy.draft_length() > 0
        policy.observe(1.01, 4, 1)


def test_the_prompts_round_trip_is_not_taken_for_a_tokens(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = []
    monkeypatch.setattr(SpeculationPolicy, "observe", lambda _, *trip: observed.append(trip))
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache, speculate=False)
    pipeline.open("job", REPEATING, max_tokens=5)
    pipeline.run()
    assert [(drafted, generated) for _, drafted, generated in observed] == [(0, 1)] * 4


def test_drafts_grow_while_they_are_accepted() -> None:
    policy = SpeculationPolicy()
    for _ in range(4):
        length = policy.draft_length()
        policy.observe(1.0, length, length + 1)
    assert policy.draft_length() == MAX_DRAFT_LENGTH


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, SamplingParams(0.8, 0.95, 3, []), PENALIZED],
    ids=["greedy", "sampled", "penalized"],
)
def test_tokens_are_those_without_drafts(cache: Path, sampling: SamplingParams) -> None:
    texts = []
    for speculate in (False, True):
        pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache, speculate=speculate)
        pipeline.open("job", REPEATING, max_tokens=80, sampling=sampling)
        pipeline.run()
        texts.append(pipeline.tokens("job"))
        drafted, accepted = pipeline.engines[0].edge.pop_draft_counts()
        assert (drafted > 0) == speculate
        assert 0 <= accepted <= drafted
    assert texts[0] == texts[1]
    assert len(texts[0]) == 80


@pytest.mark.parametrize("cuts", [[0, 6], CUTS], ids=["one node", "three nodes"])
def test_the_end_counts_accepted_and_rejected_drafts(
    cache: Path, cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeculationPolicy, "pays", lambda _: True)
    pipeline = Pipeline.cut(DEMO_MODEL, cuts, cache)
    pipeline.engines[0].span.end_tokens = frozenset()
    pipeline.open("job", REPEATING, max_tokens=80, sampling=PENALIZED)
    pipeline.open("other", [0, 7, 8], max_tokens=80)
    pipeline.run()
    ended = pipeline.ended["job"], pipeline.ended["other"]
    assert ended[0].accepted_drafts > 0
    assert ended[0].rejected_drafts > 0
    drafted, accepted = pipeline.engines[0].edge.pop_draft_counts()
    assert sum(each.accepted_drafts for each in ended) == accepted
    assert sum(each.accepted_drafts + each.rejected_drafts for each in ended) == drafted


def test_no_draft_is_counted_where_none_is_made(cache: Path) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, [0, 6], cache, speculate=False)
    pipeline.open("job", REPEATING, max_tokens=20)
    pipeline.run()
    assert (pipeline.ended["job"].accepted_drafts, pipeline.ended["job"].rejected_drafts) == (0, 0)


def test_a_text_that_repeats_itself_takes_fewer_round_trips(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeculationPolicy, "pays", lambda _: True)  # whatever else the machine does
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache)
    pipeline.engines[0].span.end_tokens = frozenset()
    tokenizer = pipeline.engines[0].span.tokenizer
    pipeline.open("job", tokenizer.encode("The value of the expression").ids, max_tokens=150)
    pipeline.run()
    assert len(pipeline.tokens("job")) == 150
    assert len(pipeline.batches) / 3 < 135


@torch.inference_mode()
def test_the_distribution_of_sampled_tokens_is_the_models(cache: Path) -> None:
    """The second token of 600 seeds against its exact probabilities, where it was drafted: the
    prompt contains what is then most likely to follow."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)

    def probabilities(tokens: list[int]) -> torch.Tensor:
        return model(torch.tensor([tokens])).logits[0, -1].softmax(-1)

    pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache)
    pipeline.engines[0].span.end_tokens = frozenset()
    start = pipeline.engines[0].span.tokenizer.encode("When an exception").ids
    first = int(probabilities(start).argmax())
    second = int(probabilities([*start, first]).argmax())
    prompt = [*start, first, second, *start]
    seeds = [f"{seed}" for seed in range(600)]
    for seed in seeds:
        sampling = SamplingParams(1.0, 1.0, int(seed), [])
        pipeline.open(seed, prompt, max_tokens=3, sampling=sampling)
    pipeline.run()
    drafted, accepted = pipeline.engines[0].edge.pop_draft_counts()
    assert 0 < accepted < drafted
    drawn = [tokens[1] for seed in seeds if (tokens := pipeline.tokens(seed))[0] == first]
    assert len(drawn) > 200
    exact = probabilities([*prompt, first])
    likely = exact.topk(5).indices.tolist()
    counts = [drawn.count(token) for token in likely]
    expected = [len(drawn) * float(exact[token]) for token in likely]
    cells = [*zip(counts, expected, strict=True)]
    cells.append((len(drawn) - sum(counts), len(drawn) - sum(expected)))
    chi_squared = sum((count - due) ** 2 / due for count, due in cells)
    assert chi_squared < 20.5, "p < 0.001 for five degrees of freedom"
