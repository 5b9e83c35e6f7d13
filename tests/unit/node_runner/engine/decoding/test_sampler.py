"""Sampling: the draw belongs to seed and position; the distribution is the model's."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from api.schemas.jobs import GenerateBody
from mesh import wire
from mesh.wire import OpenEdge, Prompt, Resume, SamplingParams, StageAssignment
from node_runner.engine.decoding.sampler import MIN_TEMPERATURE, sample, uniform
from tests.support.engine.sampling import check_draws, warpers


def sampling(temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> SamplingParams:
    return SamplingParams(temperature, top_p, seed, [])


def draws(logits: torch.Tensor, how: SamplingParams, count: int) -> torch.Tensor:
    """Frequencies of the tokens over many positions."""
    chosen = sample(logits.expand(count, -1), [how] * count, list(range(count)))
    return torch.bincount(torch.tensor(chosen), minlength=logits.shape[-1]) / count


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(torch.tensor([[0.0, 3.0, 1.0]]), [sampling(temperature=0)], [5]) == [1]


def test_rows_do_not_influence_each_other() -> None:
    logits = torch.randn(6, 50)
    hows = [sampling(temperature=t / 4, top_p=0.9, seed=t) for t in range(6)]
    together = sample(logits, hows, list(range(6)))
    alone = [sample(logits[row : row + 1], [hows[row]], [row])[0] for row in range(6)]
    assert together == alone


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    frequencies = draws(logits, sampling(temperature=0.7), 20_000)
    torch.testing.assert_close(frequencies, torch.softmax(logits / 0.7, dim=-1), atol=0.015, rtol=0)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    frequencies = draws(logits, sampling(top_p=0.75), 20_000)
    torch.testing.assert_close(
        frequencies, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015, rtol=0
    )


def test_a_tiny_top_p_keeps_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert draws(logits, sampling(top_p=1e-6), 100).tolist() == [1.0, 0.0, 0.0]


WARPED = {
    "temperature": SamplingParams(0.6, 1.0, 1, []),
    "top-k": SamplingParams(1.0, 1.0, 2, [], top_k=5),
    "top-k of one": SamplingParams(1.0, 1.0, 3, [], top_k=1),
    "top-k of more than there are": SamplingParams(1.0, 1.0, 4, [], top_k=1000),
    "top-p": SamplingParams(1.0, 0.8, 5, []),
    "min-p": SamplingParams(1.0, 1.0, 6, [], min_p=0.2),
    "min-p of one": SamplingParams(1.0, 1.0, 7, [], min_p=1.0),
    "top-p of what top-k leaves": SamplingParams(1.0, 0.7, 8, [], top_k=8),
    "top-k and min-p": SamplingParams(1.4, 1.0, 9, [], top_k=9, min_p=0.3),
    "all": SamplingParams(1.3, 0.85, 10, [], top_k=12, min_p=0.15),
}


@pytest.mark.parametrize("how", WARPED.values(), ids=WARPED)
@pytest.mark.parametrize("shape", [0, 1, 2])
def test_draws_are_from_what_the_warpers_of_transformers_leave(
    how: SamplingParams, shape: int
) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(shape)) * (0.5 + shape / 4)
    left = warpers(how)(torch.tensor([[0]]), logits[None])[0]
    check_draws(logits, how, left)


def test_of_equally_likely_tokens_top_k_keeps_all() -> None:
    logits = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0])
    how = SamplingParams(1.0, 1.0, 1, [], top_k=2)
    left = warpers(how)(torch.tensor([[0]]), logits[None])[0]
    assert left.isfinite().tolist() == [True, True, True, False, True]
    check_draws(logits, how, left)


def test_of_equally_likely_tokens_top_p_keeps_the_first() -> None:
    frequencies = draws(torch.zeros(8), sampling(top_p=0.5), 4000)
    assert frequencies[:4].min() > 0.2
    assert frequencies[4:].max() == 0


def test_what_one_row_asks_for_changes_no_other() -> None:
    """To the last bit: of many draws, none differs."""
    logits = torch.randn(len(WARPED) * 300, 50, generator=torch.Generator().manual_seed(1))
    hows = list(WARPED.values()) * 300
    positions = list(range(len(hows)))
    together = sample(logits, hows, positions)
    for number, how in enumerate(WARPED.values()):
        own = slice(number, None, len(WARPED))
        alone = sample(logits[own], [how] * 300, positions[own])
        assert together[own] == alone


@pytest.mark.parametrize("asked", [{"top_k": 3}, {"top_p": 0.1}, {"min_p": 0.9}])
def test_greedily_nothing_else_matters(asked: dict[str, float]) -> None:
    logits = torch.randn(5, 30)
    how = SamplingParams(**{"temperature": 0.0, "top_p": 1.0, "seed": 0, "stop": []} | asked)
    assert sample(logits, [how] * 5, list(range(5))) == logits.argmax(dim=-1).tolist()


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    assert uniform(1, 2) == uniform(1, 2)
    assert len({uniform(seed, position) for seed in range(30) for position in range(30)}) == 900
    values = [uniform(7, position) for position in range(10_000)]
    assert 0 <= min(values) < max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.01


LARGEST = torch.finfo(torch.float32).max
LOGITS = st.lists(
    st.one_of(
        st.floats(-LARGEST, LARGEST, width=32),
        st.sampled_from([0.0, 1.0, LARGEST, -LARGEST, float("-inf")]),
    ),
    min_size=2,
    max_size=9,
).filter(lambda row: max(row) > float("-inf"))
TEMPERATURES = st.one_of(
    st.floats(0, allow_infinity=False), st.sampled_from([0.0, 5e-324, 1e-10, 2.0, 1.7e308])
)
PORTIONS = st.one_of(st.floats(0, 1, exclude_min=True), st.sampled_from([5e-324, 0.5, 1.0]))
SEEDS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, -1, 2**63 - 1, 2**63, 2**64 - 1])
)


COUNTS = st.one_of(st.integers(0, 10), st.sampled_from([2**31, 2**63, 2**64 - 1]))
LEAST = st.one_of(st.floats(0, 1), st.sampled_from([0, 5e-324, 1e-300, 1]))


@given(LOGITS, TEMPERATURES, PORTIONS, SEEDS, st.integers(0, 2**20), COUNTS, LEAST)
def test_all_numbers_that_a_request_may_have_give_a_draw_from_what_is_left(
    row: list[float],
    temperature: float,
    top_p: float,
    seed: int,
    position: int,
    top_k: int,
    min_p: float,
) -> None:
    logits = torch.tensor([row])
    how = SamplingParams(temperature, top_p, seed, [], top_k=top_k, min_p=min_p)
    [token] = sample(logits, [how], [position])
    assert [token] == sample(logits, [how], [position])
    assert 0 <= token < len(row)
    assert row[token] > float("-inf")
    if temperature == 0:
        assert row[token] == max(row)
        return
    likelihoods = torch.softmax(logits[0].double() / max(temperature, MIN_TEMPERATURE), dim=-1)
    assert likelihoods[token] > 0
    likelier = likelihoods[likelihoods > likelihoods[token]].sum()
    assert likelier < top_p + 1e-9
    assert not top_k or sum(other > row[token] for other in row) < top_k
    assert likelihoods[token] >= min_p * likelihoods.max() * (1 - 1e-9)


@given(
    temperature=st.one_of(st.floats(0, 2), st.integers(0, 2)),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 2**63 - 1),
)
def test_what_the_schema_admits_comes_to_the_edge_as_it_is(
    temperature: float, top_p: float, seed: int
) -> None:
    asked = {"temperature": temperature, "top_p": top_p, "seed": seed}
    text = json.dumps({"model_id": "m", "prompt": "p"} | asked)
    how = GenerateBody.model_validate_json(text).job_request(None).sampling
    stage = StageAssignment(0, 1, "n", "n", "n", 9, 60, 0, 1)
    prompt = Prompt([1], [], 8, how)
    sent = OpenEdge("g", 1, stage, Resume(False, False, 0), [], prompt)
    entry = {key: bytes(value) for key, value in wire.encode(sent).items()}
    received = wire.decode(entry)
    assert received == sent
    assert how == sampling(temperature, top_p, seed)


@given(LOGITS)
def test_extremes_of_the_temperature_are_its_limits(row: list[float]) -> None:
    """Next to none takes one of the likeliest; the greatest takes each token that may be taken."""
    logits = torch.tensor(row).expand(200, -1)
    coldest = draws(logits[0], sampling(temperature=5e-324), 50)
    assert {row[token] for token in coldest.nonzero().flatten().tolist()} == {max(row)}
    hottest = draws(logits[0], sampling(temperature=1.7e308), 200)
    possible = {token for token, logit in enumerate(row) if logit > float("-inf")}
    assert set(hottest.nonzero().flatten().tolist()) == possible
