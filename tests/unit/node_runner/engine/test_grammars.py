"""Generations that follow grammars write what is valid, and the same however it is computed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.wire import SamplingParams
from mesh.wire.refusal_codes import GRAMMAR_REFUSED
from node_runner.engine.engine import Engine
from tests.conftest import DEMO_MODEL
from tests.support.engine.models import save_random
from tests.support.engine.pipeline import KV_BUDGET, Pipeline, load_span
from tests.support.engine.sampling import ALL_PARAMS
from tests.support.engine.schemas import SCHEMAS, Schema
from tests.support.engine.tokenizers import byte_level
from tests.support.some_slow import some_slow

CUTS = [0, 2, 4, 6]
PROMPT = [0, *range(20, 60)]
TOKENS = 160

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["alpha", "beta"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def grammar(schema: object) -> str:
    """JSON with one space behind each comma and colon."""
    style = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    assert isinstance(schema, dict)
    return f"start: %json {json.dumps(schema | {'x-guidance': style})}"


SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=7, stop=[], grammar=grammar(PERSON))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


@pytest.fixture(scope="module")
def random_engine(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Engine:
    """All layers of a model of random weights, of whose tokens each is a byte."""
    folder = save_random(
        tmp_path_factory.mktemp("random"),
        byte_level(),
        vocab_size=320,
        num_hidden_layers=2,
        eos_token_id=2,
    )
    span = load_span(folder, (0, 2), cache)
    return Engine(span, node_id="0", kv_budget_bytes=KV_BUDGET)


@given(schemas=st.lists(SCHEMAS, min_size=25, max_size=25))
@settings(
    max_examples=8,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_what_ends_is_valid(random_engine: Engine, schemas: Sequence[Schema]) -> None:
    """200 random schemas, each with a temperature of its own."""
    pipeline = Pipeline([random_engine])
    for number, schema in enumerate(schemas):
        sampling = SamplingParams(
            temperature=number / 12, top_p=1.0, seed=number, stop=[], grammar=grammar(schema)
        )
        pipeline.open(f"{number}", [1, 30], max_tokens=TOKENS, sampling=sampling)
    pipeline.run()
    assert pipeline.refused == []
    stopped = 0
    for number, schema in enumerate(schemas):
        if pipeline.ended[f"{number}"].reason == "stop":
            stopped += 1
            written = json.loads(pipeline.text(f"{number}"))
            jsonschema_rs.validate(schema, written, validate_formats=True)
    assert stopped > len(schemas) // 2


def test_drafts_change_no_token(cache: Path) -> None:
    texts = []
    for speculate in (True, False):
        pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache, speculate=speculate)
        for seed in range(4):
            sampling = replace(SAMPLED, seed=seed, temperature=0.3 * seed)
            pipeline.open(f"{seed}", PROMPT, max_tokens=TOKENS, sampling=sampling)
        pipeline.run()
        texts.append([pipeline.tokens(f"{seed}") for seed in range(4)])
        drafted = sum(ended.accepted_drafts for ended in pipeline.ended.values())
        assert (drafted > 4 * 12) == speculate
        rejected = sum(ended.rejected_drafts for ended in pipeline.ended.values())
        assert rejected <= drafted // 4
    assert texts[0] == texts[1]


def test_forced_tokens_come_in_one_round_trip(cache: Path) -> None:
    """Between values all is certain: the first step behind the prompt, one for what is certain,
    and one for each other token."""
    only = {"type": "object", "properties": {"answer": {"const": "forty-two"}}}
    schema = only | {"required": ["answer"], "additionalProperties": False}
    sampling = replace(SAMPLED, grammar=grammar(schema))
    pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache)
    pipeline.open("job", PROMPT, max_tokens=TOKENS, sampling=sampling)
    pipeline.run()
    ended = pipeline.ended["job"]
    assert pipeline.text("job") == '{"answer": "forty-two"}'
    assert ended.reason == "stop"
    assert ended.rejected_drafts == 0
    assert ended.count - ended.accepted_drafts <= 3


@pytest.mark.parametrize("written", some_slow(list(range(1, 26)), quick=[1, 4, 11]))
@pytest.mark.parametrize("sampling", [SAMPLED, replace(ALL_PARAMS, grammar=SAMPLED.grammar)])
def test_a_generation_continues_elsewhere_with_equal_tokens(
    cache: Path, sampling: SamplingParams, written: int
) -> None:
    undisturbed = Pipeline.cut(DEMO_MODEL, [0, 6], cache)
    undisturbed.open("job", PROMPT, max_tokens=TOKENS, sampling=sampling)
    undisturbed.run()
    tokens = undisturbed.tokens("job")
    elsewhere = Pipeline.cut(DEMO_MODEL, [0, 6], cache)
    elsewhere.pretend_written("job", tokens[:written])
    elsewhere.open(
        "job",
        PROMPT,
        max_tokens=TOKENS,
        sampling=sampling,
        epoch=2,
        generated=tokens[:written],
    )
    elsewhere.run()
    assert elsewhere.tokens("job") == tokens
    assert elsewhere.ended["job"].reason == undisturbed.ended["job"].reason


def test_a_text_that_was_complete_ends_where_it_continues(cache: Path) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, [0, 6], cache)
    pipeline.open("job", PROMPT, max_tokens=TOKENS, sampling=SAMPLED)
    pipeline.run()
    tokens = pipeline.tokens("job")
    assert pipeline.ended["job"].reason == "stop"
    elsewhere = Pipeline.cut(DEMO_MODEL, [0, 6], cache)
    elsewhere.open("job", PROMPT, max_tokens=TOKENS, sampling=SAMPLED, epoch=2, generated=tokens)
    elsewhere.run()
    assert elsewhere.tokens("job") == []
    ended = elsewhere.ended["job"]
    assert (ended.reason, ended.count) == ("stop", len(tokens))


def test_free_texts_beside_it_stay_as_they_are(cache: Path) -> None:
    free = replace(SAMPLED, grammar="")
    alone = Pipeline.cut(DEMO_MODEL, [0, 6], cache)
    beside = Pipeline.cut(DEMO_MODEL, [0, 6], cache)
    for number in range(3):
        alone.open(f"free {number}", PROMPT, max_tokens=20, sampling=replace(free, seed=number))
        alone.run()
        beside.open(f"free {number}", PROMPT, max_tokens=20, sampling=replace(free, seed=number))
        beside.open(f"{number}", PROMPT, max_tokens=40, sampling=replace(SAMPLED, seed=number))
    beside.run()
    for number in range(3):
        assert beside.tokens(f"free {number}") == alone.tokens(f"free {number}")


@pytest.mark.parametrize(
    ("wrong", "generated"), [("start: (", []), ("start: <[99999999]>", []), (SAMPLED.grammar, [40])]
)
def test_what_cannot_be_followed_is_refused_alone(
    cache: Path, wrong: str, generated: list[int]
) -> None:
    pipeline = Pipeline.cut(DEMO_MODEL, [0, 6], cache)
    pipeline.open(
        "wrong",
        PROMPT,
        max_tokens=20,
        sampling=replace(SAMPLED, grammar=wrong),
        generated=generated,
    )
    pipeline.open("job", PROMPT, max_tokens=TOKENS, sampling=SAMPLED)
    pipeline.run()
    assert [(each.request_id, each.code) for each in pipeline.refused] == [
        ("wrong", GRAMMAR_REFUSED)
    ]
    assert pipeline.ended["job"].reason == "stop"
