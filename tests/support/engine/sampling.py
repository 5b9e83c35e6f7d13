"""What sampling is compared with: processors of transformers, and a test of frequencies."""

from collections.abc import Callable, Sequence

import torch
from transformers import LogitsProcessorList
from transformers.generation import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mesh.wire import SamplingParams
from node_runner.engine.decoding.sampler import sample

ALL_PARAMS = SamplingParams(
    temperature=0.9,
    top_p=0.95,
    seed=7,
    stop=[],
    top_k=60,
    min_p=0.01,
    repetition_penalty=1.2,
    frequency_penalty=0.4,
    presence_penalty=0.3,
    logit_bias={300: 2.0, 301: -100.0, 20: -0.5},
    logprobs=3,
)
"""All that a request may ask for, but a grammar."""


class OpenAIPenalties(LogitsProcessor):
    """Frequency and presence penalties by OpenAI's formula, token by token: transformers has none.

    https://platform.openai.com/docs/guides/text-generation: `mu[j] - c[j] * alpha_frequency -
    float(c[j] > 0) * alpha_presence`.
    """

    def __init__(self, params: SamplingParams, prompt_length: int) -> None:
        self._params = params
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Of one row."""
        changed = scores.clone()
        generated = input_ids[0, self._prompt_length :].tolist()
        for token in set(generated):
            changed[0, token] -= self._params.frequency_penalty * generated.count(token)
            changed[0, token] -= self._params.presence_penalty
        return changed


def warpers(params: SamplingParams) -> LogitsProcessorList:
    """What `generate` draws with, in its order."""
    listed = LogitsProcessorList([TemperatureLogitsWarper(float(params.temperature))])
    if params.top_k:
        listed.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        listed.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        listed.append(MinPLogitsWarper(params.min_p))
    return listed


def penalties(params: SamplingParams, prompt_length: int) -> LogitsProcessorList:
    """What a request changes in logits before that."""
    listed = LogitsProcessorList()
    if params.repetition_penalty is not None:
        listed.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    listed.append(OpenAIPenalties(params, prompt_length))
    if params.logit_bias:
        bias = {(token,): value for token, value in params.logit_bias.items()}
        listed.append(SequenceBiasLogitsProcessor(bias))
    return listed


def check_draws(
    logits: torch.Tensor,
    params: SamplingParams,
    left: torch.Tensor,
    *,
    draws: int = 40_000,
    process: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Tokens are drawn as often as ``left`` says, and others never.

    Args:
        logits: ``[vocab]``.
        params: How to sample.
        left: What transformers leaves of the logits, ``[vocab]``: minus infinity where a token may
            not be drawn. Those that may be need a probability of a thousandth at least.
        draws: So many positions.
        process: As of :func:`sample`.
    """
    chosen = sample(logits.expand(draws, -1), [params] * draws, range(draws), process=process)
    counts = torch.bincount(torch.tensor(chosen), minlength=len(logits)).double()
    expected = left.double().softmax(dim=-1) * draws
    assert expected[left.isfinite()].min() >= draws / 1000
    assert (counts > 0).tolist() == left.isfinite().tolist()
    assert is_likely(counts[counts > 0].tolist(), expected[counts > 0].tolist())


def is_likely(counts: Sequence[float], expected: Sequence[float]) -> bool:
    """Pearson's chi-squared test of frequencies, at p = 0.001."""
    if len(counts) == 1:
        return True
    chi_squared = sum((count - due) ** 2 / due for count, due in zip(counts, expected, strict=True))
    freedom = torch.tensor((len(counts) - 1) / 2)
    return float(torch.special.gammaincc(freedom, torch.tensor(chi_squared / 2))) > 0.001
