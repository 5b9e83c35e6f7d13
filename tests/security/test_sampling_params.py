"""Numbers of a request by which no token can be drawn are refused; by all others it is."""

import math
from dataclasses import replace
from typing import Any

import pytest

from mesh.wire.limits import (
    MAX_GRAMMAR,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIASES,
    MAX_PENALTY,
    MAX_TOP_LOGPROBS,
)
from mesh.wire.refusal_codes import INVALID_REQUEST
from tests.support.engine.models import save_random
from tests.support.engine.pipeline import Pipeline
from tests.support.engine.sampling import ALL_PARAMS
from tests.support.engine.tokenizers import byte_fallback_bpe

VOCABULARY = 2000
PROMPT = [5, 280, 290]
USUAL = replace(ALL_PARAMS, logit_bias={})
NO_NUMBERS = [math.nan, math.inf, -math.inf]

REFUSED: list[dict[str, Any]] = [
    *({"temperature": value} for value in (*NO_NUMBERS, -1, -5e-324)),
    *({"top_p": value} for value in (*NO_NUMBERS, 0, -0.5, 1.5)),
    *({"top_k": value} for value in (-1, -(2**63))),
    *({"min_p": value} for value in (*NO_NUMBERS, -0.1, 1.1)),
    *({"repetition_penalty": value} for value in (*NO_NUMBERS, 0, -1.0)),
    *(
        {name: value}
        for name in ("frequency_penalty", "presence_penalty")
        for value in (*NO_NUMBERS, MAX_PENALTY + 0.1, -MAX_PENALTY - 0.1)
    ),
    *({"logit_bias": {7: value}} for value in (*NO_NUMBERS, MAX_LOGIT_BIAS + 1, -1e300)),
    *({"logit_bias": {token: 1.0}} for token in (-1, VOCABULARY, 2**31, 2**64 - 1)),
    {"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 1.0)},
    *({"logprobs": value} for value in (-1, MAX_TOP_LOGPROBS + 1, 2**64 - 1)),
    {"grammar": "x" * (MAX_GRAMMAR + 1)},
]

ADMITTED: list[dict[str, Any]] = [
    *({"temperature": value} for value in (0, 5e-324, 1.7e308, 2**64 - 1)),
    *({"top_p": value} for value in (5e-324, 1)),
    *({"top_k": value} for value in (0, 1, VOCABULARY, VOCABULARY + 1, 2**64 - 1)),
    *({"min_p": value} for value in (0, 5e-324, 1)),
    *({"repetition_penalty": value} for value in (None, 1, 5e-324, 1.7e308, 2**64 - 1)),
    *(
        {name: value}
        for name in ("frequency_penalty", "presence_penalty")
        for value in (-MAX_PENALTY, 0, MAX_PENALTY)
    ),
    {"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIASES), -MAX_LOGIT_BIAS)},
    {"logit_bias": {0: MAX_LOGIT_BIAS, VOCABULARY - 1: 0}},
    *({"logprobs": value} for value in (None, 0, MAX_TOP_LOGPROBS)),
]


def named(changes: dict[str, Any]) -> str:
    return str(changes)[:60]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("model")
    model = save_random(folder, byte_fallback_bpe(), vocab_size=VOCABULARY)
    pipeline = Pipeline.cut(model, [0, 4], tmp_path_factory.mktemp("spans"))
    pipeline.engines[0].span.end_tokens = frozenset()
    return pipeline


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline) -> list[int]:
    pipeline.open("alone", PROMPT, max_tokens=9, sampling=USUAL)
    pipeline.run()
    return pipeline.tokens("alone")


def attack(pipeline: Pipeline, changes: dict[str, Any], temperature: float) -> str:
    """Beside a bystander."""
    name = f"attack {temperature} {len(pipeline.written)} {len(pipeline.refused)}"
    pipeline.written.pop("bystander", None)
    pipeline.open("bystander", PROMPT, max_tokens=9, sampling=USUAL)
    sampling = replace(USUAL, **{"temperature": temperature} | changes)
    pipeline.open(name, PROMPT, max_tokens=9, sampling=sampling)
    pipeline.run()
    pipeline.close("bystander")
    pipeline.close(name)
    pipeline.run()
    return name


@pytest.mark.parametrize("changes", REFUSED, ids=named)
def test_what_gives_no_draw_is_refused(
    pipeline: Pipeline, alone: list[int], changes: dict[str, Any]
) -> None:
    name = attack(pipeline, changes, 0.9)
    refused = pipeline.refused[-1]
    assert (refused.request_id, refused.code) == (name, INVALID_REQUEST)
    assert name not in pipeline.written
    assert pipeline.tokens("bystander") == alone


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("changes", ADMITTED, ids=named)
def test_by_all_else_tokens_are_drawn(
    pipeline: Pipeline, alone: list[int], changes: dict[str, Any], temperature: float
) -> None:
    name = attack(pipeline, changes, temperature)
    assert all(refused.request_id != name for refused in pipeline.refused)
    tokens = pipeline.tokens(name)
    assert len(tokens) == 9
    assert all(0 <= token < VOCABULARY for token in tokens)
    assert pipeline.tokens("bystander") == alone


def test_a_forced_token_is_drawn_and_a_banned_one_is_not(pipeline: Pipeline) -> None:
    name = attack(pipeline, {"logit_bias": {17: MAX_LOGIT_BIAS}}, 0.9)
    assert pipeline.tokens(name) == [17] * 9
    free = pipeline.tokens(attack(pipeline, {}, 0.0))
    banned = attack(pipeline, {"logit_bias": dict.fromkeys(free, -MAX_LOGIT_BIAS)}, 0.0)
    assert not set(pipeline.tokens(banned)) & set(free)
