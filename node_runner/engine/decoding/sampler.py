"""Counter-based sampling: the draw for a position depends on seed and position alone.

So a generation that continues on another node, or again from its prompt, has the same tokens.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch

from mesh.wire import SamplingParams
from node_runner.engine.device.tensors import on_device

NOT_FINITE = -1
"""In place of a token id where logits have NaN or infinity."""

MIN_TEMPERATURE = 1e-260
"""Divided by less, logits would overflow float64. The likeliest token has all the probability long
before, however little likelier than others it is."""


def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    positions: Sequence[int],
    *,
    process: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[int]:
    """Sample one token a row: the likeliest where the temperature is 0, else by inverse transform
    from what the temperature, then top-k, top-p and min-p leave.

    Args:
        logits: ``[rows, vocab]``, float32.
        params: How to sample, by row.
        positions: Index in the text (prompt included) of the token to be sampled, by row.
        process: What requests and a checkpoint's settings make of the logits before tokens are
            chosen; the given ones where they change nothing.

    Returns:
        Token ids, by row; :data:`NOT_FINITE` where none can be chosen.
    """
    likeliest = logits.argmax(dim=-1)  # NaN counts as the largest, and infinity is
    finite = logits.gather(1, likeliest[:, None])[:, 0].isfinite()
    scores = logits if process is None else process(logits)
    if scores is not logits:
        likeliest = scores.argmax(dim=-1)
    chosen: list[int] = likeliest.where(finite, NOT_FINITE).tolist()
    drawn = [row for row, own in enumerate(params) if own.temperature > 0 <= chosen[row]]
    if drawn:
        own_params = [params[row] for row in drawn]
        draws = [
            uniform(own.seed, positions[row]) for row, own in zip(drawn, own_params, strict=True)
        ]
        for row, token in zip(drawn, _draw(scores[drawn], own_params, draws), strict=True):
            chosen[row] = token
    return chosen


def _draw(
    scores: torch.Tensor, params: Sequence[SamplingParams], draws: Sequence[float]
) -> list[int]:
    """A token for each row, at the point ``draws`` of its cumulative distribution.

    Tokens are ranked by their scores, and those with equal scores by their ids. Like transformers'
    `TopKLogitsWarper`, `TopPLogitsWarper` and `MinPLogitsWarper` in this order, each sees what the
    one before has left; of equally likely tokens, top-k keeps all or none, and top-p the first.
    """
    temperature = _column([own.temperature for own in params], scores)
    draw = _column(draws, scores)
    ranked, tokens = scores.sort(dim=-1, descending=True, stable=True)
    scaled = ranked.double().div_(temperature.clamp(min=MIN_TEMPERATURE))
    probabilities = torch.softmax(scaled, dim=-1)
    reached = probabilities.cumsum(dim=-1)
    kept = _kept(ranked, probabilities, reached, params)
    last = kept - 1
    ranks = torch.searchsorted(reached, draw * reached.gather(1, last), right=True)
    # A GPU's sums may not ascend by their last bit: no rank is behind those kept for that.
    chosen: list[int] = tokens.gather(1, ranks.minimum(last))[:, 0].tolist()
    return chosen


def _kept(
    ranked: torch.Tensor,
    probabilities: torch.Tensor,
    reached: torch.Tensor,
    params: Sequence[SamplingParams],
) -> torch.Tensor:
    """How many of the first ranks may be drawn, ``[rows, 1]``: one at least.

    Args:
        ranked: Scores in falling order, ``[rows, vocab]``.
        probabilities: Of the ranks, float64.
        reached: Their sums up to each rank.
        params: By row.
    """
    least_sum = _column([own.top_p for own in params], ranked)
    kept = None
    if any(own.top_k for own in params):
        vocab_size = ranked.shape[-1]
        top_k = [min(own.top_k or vocab_size, vocab_size) for own in params]
        last = on_device([count - 1 for count in top_k], ranked.device)[:, None]
        kept = (ranked >= ranked.gather(1, last)).sum(dim=-1, keepdim=True)
        whole = reached.gather(1, kept - 1).where(kept < vocab_size, 1.0)
        least_sum = least_sum * whole
    # The nucleus (Holtzman et al. 2020): the fewest tokens that together reach top_p.
    nucleus = torch.searchsorted(reached - probabilities, least_sum)
    kept = nucleus if kept is None else kept.minimum(nucleus)
    if any(own.min_p for own in params):
        least = _column([own.min_p for own in params], ranked) * probabilities[:, :1]
        kept = kept.minimum((probabilities >= least).sum(dim=-1, keepdim=True))
    return kept.clamp(min=1)


def uniform(seed: int, position: int) -> float:
    """The draw for a position: a number in [0, 1) with 53 random bits, BLAKE2b of seed and
    position."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
