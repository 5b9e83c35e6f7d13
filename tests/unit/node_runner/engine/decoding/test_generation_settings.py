"""A checkpoint's generation settings are followed as transformers' `generate` follows them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
)

from mesh.model.generation_config import read_generation_config
from mesh.wire import SamplingParams
from node_runner.engine.decoding.logits_processor import Continuation, LogitsProcessor
from node_runner.engine.engine import Engine
from node_runner.engine.model.span_model import SpanModel
from tests.conftest import DEMO_MODEL
from tests.support.engine.families import TINY
from tests.support.engine.models import save_random
from tests.support.engine.pipeline import GREEDY, KV_BUDGET, Pipeline, load_span
from tests.support.some_slow import some_slow

VOCAB = TINY["vocab_size"]
NEW_TOKENS = 24
MAX_LENGTH = 16
PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [9], [20, 21, 22, 23, 20, 21]]

SETTINGS: dict[str, dict[str, Any]] = {
    "repetition penalty": {"repetition_penalty": 1.7},
    "reward of repetition": {"repetition_penalty": 0.6},
    "single tokens once": {"no_repeat_ngram_size": 1},
    "pairs once": {"no_repeat_ngram_size": 2},
    "triples once": {"no_repeat_ngram_size": 3},
    "forced": {"forced_bos_token_id": 17, "forced_eos_token_id": 18},
    "forced to one of two": {"forced_eos_token_id": [19, 18]},
    "suppressed": {"suppress_tokens": list(range(0, VOCAB, 2))},
    "suppressed at begin": {"begin_suppress_tokens": list(range(150))},
    "suppressed behind a forced token": {
        "begin_suppress_tokens": list(range(150)),
        "forced_bos_token_id": 3,
    },
    "bad words": {"bad_words_ids": [[word] for word in range(80)] + [[200, 201], [5, 6, 7]]},
    "end later": {"eos_token_id": list(range(100)), "min_new_tokens": 9},
    "end later, prompt included": {"eos_token_id": list(range(100)), "min_length": 12},
    "end later by new tokens": {
        "eos_token_id": list(range(100)),
        "min_length": 20,
        "min_new_tokens": 2,
    },
    "end sooner": {"eos_token_id": 7, "exponential_decay_length_penalty": [3, 1.5]},
    "one end": {"eos_token_id": 7},
    "ends": {"eos_token_id": list(range(40))},
    "no end": {},
    "renormalized": {"renormalize_logits": True, "repetition_penalty": 1.2},
    "all at once": {
        "eos_token_id": [1, 2],
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[8], [9, 10], [1]],
        "min_new_tokens": 4,
        "exponential_decay_length_penalty": [6, 1.1],
        "suppress_tokens": [30, 31],
        "begin_suppress_tokens": [40],
        "forced_eos_token_id": 2,
    },
}

QUICK = ("suppressed behind a forced token", "end later", "no end", "all at once")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that repeats itself when it is left alone."""
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    return save_random(tmp_path_factory.mktemp("random"), tokenizer)


@pytest.fixture(scope="module")
def model(source: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(source).eval()


@pytest.fixture(scope="module")
def spans(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SpanModel]:
    cache = tmp_path_factory.mktemp("cache")
    return [load_span(source, layers, cache) for layers in ((0, 2), (2, 4))]


def pipeline_of(
    spans: list[SpanModel], settings: dict[str, Any], *, speculate: bool = True
) -> Pipeline:
    """As if the checkpoint had these settings of generation."""
    edge = spans[0]
    edge.generation_config = read_generation_config(settings, vocab_size=edge.vocab_size)
    edge.end_tokens = edge.generation_config.eos_token_ids
    return Pipeline(
        [
            Engine(span, node_id=str(stage), kv_budget_bytes=KV_BUDGET, speculate=speculate)
            for stage, span in enumerate(spans)
        ]
    )


def generated(model: PreTrainedModel, prompt: list[int], count: int = NEW_TOKENS) -> list[int]:
    """What transformers generates with the model's own settings."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@pytest.mark.parametrize("name", some_slow(SETTINGS, quick=QUICK))
def test_greedy_tokens_equal_those_of_generate(
    name: str, spans: list[SpanModel], model: PreTrainedModel
) -> None:
    model.generation_config = GenerationConfig(**SETTINGS[name])
    expected = [generated(model, prompt) for prompt in PROMPTS]
    for speculate in (True, False):
        pipeline = pipeline_of(spans, SETTINGS[name], speculate=speculate)
        for number, prompt in enumerate(PROMPTS):
            pipeline.open(str(number), prompt, max_tokens=NEW_TOKENS)
        pipeline.run()
        assert [pipeline.tokens(str(number)) for number in range(len(PROMPTS))] == expected


@pytest.mark.parametrize("name", ["all at once", "pairs once", "end sooner", "suppressed at begin"])
def test_a_generation_that_continues_elsewhere_has_the_same_tokens(
    name: str, spans: list[SpanModel]
) -> None:
    def tokens(temperature: float, before: Sequence[int]) -> list[int]:
        pipeline = pipeline_of(spans, SETTINGS[name])
        pipeline.first_index = len(before)
        sampling = SamplingParams(temperature, 1.0, 11, [])
        pipeline.open("job", PROMPTS[0], max_tokens=NEW_TOKENS, sampling=sampling, generated=before)
        pipeline.run()
        return pipeline.tokens("job")

    for temperature in (0.0, 0.8):
        whole = tokens(temperature, [])
        assert len(whole) > 4
        for cut in (1, len(whole) - 2):
            assert whole[:cut] + tokens(temperature, whole[:cut]) == whole


@pytest.mark.parametrize("published", [None, {}, {"eos_token_id": list(range(60))}])
def test_settings_in_config_json_count_where_there_is_no_other_file(
    published: dict[str, Any] | None, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).hardlink_to(source / name)
    settings = json.loads((source / "config.json").read_text())
    settings |= {"eos_token_id": list(range(30)), "repetition_penalty": 1.5}
    (folder / "config.json").write_text(json.dumps(settings))
    if published is not None:
        (folder / "generation_config.json").write_text(json.dumps(published))
    pipeline = Pipeline.cut(folder, [0, 4], tmp_path / "cache")
    pipeline.open("job", PROMPTS[0], max_tokens=NEW_TOKENS)
    pipeline.run()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert pipeline.tokens("job") == generated(model, PROMPTS[0])


TOKENS = st.integers(0, 11)
IDS = st.lists(TOKENS, min_size=1, max_size=4)
ANY_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "eos_token_id": st.one_of(TOKENS, IDS, st.just([500])),
        "repetition_penalty": st.floats(0.1, 9),
        "no_repeat_ngram_size": st.integers(0, 4),
        "bad_words_ids": st.lists(IDS, min_size=1, max_size=4),
        "min_length": st.integers(0, 20),
        "min_new_tokens": st.integers(0, 20),
        "forced_bos_token_id": TOKENS,
        "forced_eos_token_id": st.one_of(TOKENS, IDS),
        "exponential_decay_length_penalty": st.tuples(st.integers(0, 9), st.floats(0.5, 3)),
        "suppress_tokens": IDS,
        "begin_suppress_tokens": IDS,
        "renormalize_logits": st.booleans(),
    },
)
TEXTS = st.lists(
    st.tuples(st.lists(TOKENS, min_size=1, max_size=12), st.lists(TOKENS, max_size=4)),
    min_size=1,
    max_size=3,
)


def is_complete(written: dict[str, Any]) -> bool:
    """Whether `generate` takes the settings at all."""
    ends, last = written.get("eos_token_id"), written.get("forced_eos_token_id")
    suppressed = written.get("suppress_tokens", [])
    listed = [ends] if isinstance(ends, int) else ends or []
    if "exponential_decay_length_penalty" in written and listed in ([], [500]):
        return False
    if written.get("forced_bos_token_id") in suppressed:
        return False
    if last is not None and set([last] if isinstance(last, int) else last) <= set(suppressed):
        return False
    words = written.get("bad_words_ids", [[500]])
    return any(word not in [[end] for end in listed] for word in words)


def reference(model: PreTrainedModel, settings: dict[str, Any], prompt: int) -> LogitsProcessorList:
    """The processors of transformers, for a prompt of so many tokens."""
    config = GenerationConfig(**settings, max_length=MAX_LENGTH)
    model._prepare_special_tokens(config, device="cpu")
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + prompt
    return model._get_logits_processor(config, input_ids_seq_length=prompt, device="cpu")


@given(ANY_SETTINGS.filter(is_complete), TEXTS, st.integers(0, 3), st.integers(0, 2**32))
def test_logits_equal_those_of_the_processors_of_transformers(
    model: PreTrainedModel,
    written: dict[str, Any],
    texts: list[tuple[list[int], list[int]]],
    new: int,
    seed: int,
) -> None:
    """Of many texts at once, with draft tokens behind them."""
    read = read_generation_config(written, vocab_size=VOCAB)
    processor = LogitsProcessor(read, device=torch.device("cpu"))
    rows = sum(1 + len(drafts) for _, drafts in texts)
    logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 9
    prompts = [max(1, len(tokens) - new) for tokens, _ in texts]
    continuations = [
        Continuation(tokens, drafts, prompt, MAX_LENGTH, processor.history(GREEDY, prompt))
        for (tokens, drafts), prompt in zip(texts, prompts, strict=True)
    ]
    ours = iter(processor.process(logits, continuations))
    given_to_both = iter(logits)
    for (tokens, drafts), prompt in zip(texts, prompts, strict=True):
        processors = reference(model, written, prompt)
        for count in range(1 + len(drafts)):
            ids = torch.tensor([tokens + drafts[:count]])
            theirs = processors(ids, next(given_to_both)[None])[0]
            mine = next(ours)
            assert mine.argmax() == theirs.argmax()
            assert not mine.isnan().any()
            if theirs.isfinite().any():
                torch.testing.assert_close(mine, theirs)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 4), st.data())
def test_a_history_that_grows_bans_as_a_new_one(
    tokens: list[int], size: int, data: st.DataObject
) -> None:
    written = {"no_repeat_ngram_size": size, "repetition_penalty": 2.0}
    read = read_generation_config(written, vocab_size=8)
    processor = LogitsProcessor(read, device=torch.device("cpu"))
    logits = torch.linspace(-2, 2, 8)[None]
    grown = processor.history(GREEDY, 1)
    for end in sorted(data.draw(st.sets(st.integers(1, len(tokens))))):
        histories = [grown, processor.history(GREEDY, 1)]
        one, other = (
            processor.process(logits, [Continuation(tokens[:end], [], 1, 99, history)])
            for history in histories
        )
        assert torch.equal(one, other)
