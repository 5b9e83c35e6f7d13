"""In 16 bits a text has the same tokens whoever runs beside, however it was interrupted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mesh.prefix_hashes import BLOCK_TOKENS, prefix_hashes
from mesh.wire import SamplingParams
from mesh.wire.logprobs import unpack_logprobs
from tests.conftest import DEMO_MODEL
from tests.support.engine.pipeline import GREEDY, Pipeline
from tests.support.engine.prompts import PROMPTS, encoded
from tests.support.engine.sampling import ALL_PARAMS
from tests.support.some_slow import some_slow

CUTS = [0, 3, 6]
FEW = [0, 2, 9, 13, 19]
"""Prompts of the quick tests."""

pytestmark = pytest.mark.parametrize(
    "dtype", some_slow([torch.bfloat16, torch.float16], quick=[torch.bfloat16]), ids=str
)


def sampling(temperature: float, number: int) -> SamplingParams:
    if temperature == 0:
        return GREEDY
    return SamplingParams(temperature=temperature, top_p=0.95, seed=number, stop=[])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return encoded(PROMPTS)


def texts(
    pipeline: Pipeline, prompts: list[list[int]], temperature: float, *, at_once: int, tokens: int
) -> list[list[int]]:
    """The text of each prompt, so many at once."""
    for begin in range(0, len(prompts), at_once):
        for number, prompt in list(enumerate(prompts))[begin : begin + at_once]:
            pipeline.open(
                f"{number} of {at_once}",
                prompt,
                max_tokens=tokens,
                sampling=sampling(temperature, number),
            )
        pipeline.run()
    return [pipeline.tokens(f"{number} of {at_once}") for number in range(len(prompts))]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_are_the_same_whoever_runs_beside(
    dtype: torch.dtype, temperature: float, cache: Path, prompts: list[list[int]]
) -> None:
    few = [prompts[number] for number in FEW]
    plain = Pipeline.cut(DEMO_MODEL, CUTS, cache, dtype=dtype, speculate=False)
    alone = texts(plain, few, temperature, at_once=1, tokens=24)
    assert texts(plain, few, temperature, at_once=len(few), tokens=24) == alone
    drafted = Pipeline.cut(DEMO_MODEL, CUTS, cache, dtype=dtype, speculate=True)
    assert texts(drafted, few, temperature, at_once=len(few), tokens=24) == alone


@pytest.mark.parametrize("speculate", [False, True])
def test_tokens_are_the_same_whatever_others_ask_for(
    dtype: torch.dtype, speculate: bool, cache: Path, prompts: list[list[int]]
) -> None:
    """And their log-probabilities, to the last bit."""
    hows = [
        GREEDY,
        ALL_PARAMS,
        replace(ALL_PARAMS, temperature=0.0, repetition_penalty=None, logprobs=20),
        replace(ALL_PARAMS, seed=8, logprobs=None, logit_bias={}, top_k=3),
        sampling(0.7, 4),
    ]
    few = [prompts[number] for number in FEW]

    def tokens(together: bool) -> list[list[tuple[int, bytes]]]:
        pipeline = Pipeline.cut(DEMO_MODEL, CUTS, cache, dtype=dtype, speculate=speculate)
        for number, (prompt, how) in enumerate(zip(few, hows, strict=True)):
            pipeline.open(str(number), prompt, max_tokens=24, sampling=how)
            if not together:
                pipeline.run()
        pipeline.run()
        return [
            [(token.token_id, token.logprobs) for token in pipeline.written[str(number)]]
            for number in range(len(few))
        ]

    alone = tokens(together=False)
    assert tokens(together=True) == alone
    for how, written in zip(hows, alone, strict=True):
        reported = {len(unpack_logprobs(logprobs)) for _, logprobs in written}
        assert reported == {0 if how.logprobs is None else 1 + how.logprobs}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_nor_do_long_texts_beside_many(
    dtype: torch.dtype, temperature: float, cache: Path, prompts: list[list[int]]
) -> None:
    plain = Pipeline.cut(DEMO_MODEL, [0, 6], cache, dtype=dtype, speculate=False)
    drafted = Pipeline.cut(DEMO_MODEL, [0, 6], cache, dtype=dtype, speculate=True)
    alone = texts(plain, prompts, temperature, at_once=1, tokens=200)
    assert texts(drafted, prompts, temperature, at_once=1, tokens=200) == alone
    for at_once in (8, 16):
        for pipeline in (plain, drafted):
            others = texts(pipeline, prompts, temperature, at_once=at_once, tokens=200)
            assert others == alone, at_once


@pytest.mark.parametrize("so_far", [1, 10, 23])
def test_tokens_are_the_same_after_a_failover(
    dtype: torch.dtype, so_far: int, cache: Path, prompts: list[list[int]]
) -> None:
    """New nodes compute prompt and tokens in chunks; those before decoded them one by one."""
    prompt = prompts[19]
    before = Pipeline.cut(DEMO_MODEL, CUTS, cache, dtype=dtype, speculate=False)
    [expected] = texts(before, [prompt], 0.7, at_once=1, tokens=24)
    after = Pipeline.cut(DEMO_MODEL, [0, 2, 6], cache, dtype=dtype)
    after.open("other", prompts[0], max_tokens=24)
    after.pretend_written("job", expected[:so_far])
    after.open(
        "job",
        prompt,
        max_tokens=24,
        sampling=sampling(0.7, 0),
        epoch=2,
        generated=expected[:so_far],
    )
    after.run()
    assert after.tokens("job") == expected


def test_tokens_are_the_same_after_a_prefix_that_was_kept(
    dtype: torch.dtype, cache: Path, prompts: list[list[int]]
) -> None:
    """What is kept was computed in other chunks: it ended elsewhere, and others were beside."""
    prompt = prompts[19]
    shared = prompt[: 3 * BLOCK_TOKENS + 5]
    fresh = Pipeline.cut(DEMO_MODEL, [0, 6], cache, dtype=dtype)
    [expected] = texts(fresh, [prompt], 0.0, at_once=1, tokens=24)
    pipeline = Pipeline.cut(DEMO_MODEL, [0, 6], cache, dtype=dtype)

    def prefix(tokens: list[int]) -> list[bytes]:
        return prefix_hashes(tokens, key=b"k" * 32, user="0xa")

    pipeline.open("first", shared, max_tokens=2, prefix=prefix(shared))
    pipeline.open("beside", prompts[0], max_tokens=9)
    pipeline.run()
    pipeline.close("first")
    pipeline.run()
    pipeline.open("second", prompt, max_tokens=24, prefix=prefix(prompt))
    pipeline.run()
    assert pipeline.tokens("second") == expected
    assert pipeline.reused["second"] == 3 * BLOCK_TOKENS
