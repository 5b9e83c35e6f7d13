"""Sampling: the draw belongs to seed and position; the distribution is the model's."""

import torch

from mesh.wire import SamplingParams
from node_runner.engine.decoding.sampler import sample, uniform


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


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    assert uniform(1, 2) == uniform(1, 2)
    assert len({uniform(seed, position) for seed in range(30) for position in range(30)}) == 900
    values = [uniform(7, position) for position in range(10_000)]
    assert 0 <= min(values) < max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.01
