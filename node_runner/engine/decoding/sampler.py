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
    top_p = _column([own.top_p for own in params], scores)
    draw = _column(draws, scores)
    ranked, tokens = scores.sort(dim=-1, descending=True, stable=True)
    if any(own.top_k for own in params):
        last = [min(own.top_k or scores.shape[-1], scores.shape[-1]) - 1 for own in params]
        least = ranked.gather(1, on_device(last, scores.device)[:, None])
        ranked = ranked.masked_fill(ranked < least, float("-inf"))
    scaled = ranked.double() / temperature.clamp(min=MIN_TEMPERATURE)
    probabilities = torch.softmax(scaled, dim=-1)
    # The nucleus (Holtzman et al. 2020): the fewest tokens that together reach top_p; the first is
    # always in it.
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p, 0.0)
    if any(own.min_p for own in params):
        min_p = _column([own.min_p for own in params], scores)
        kept = kept.masked_fill(probabilities < min_p * probabilities[:, :1], 0.0)
    reached = kept.cumsum(dim=-1)
    ranks = torch.searchsorted(reached, draw * reached[:, -1:], right=True)
    # A GPU's sums may not ascend by their last bit: no rank is behind those kept for that.
    ranks = ranks.minimum(kept.count_nonzero(dim=-1)[:, None] - 1)
    chosen: list[int] = tokens.gather(1, ranks)[:, 0].tolist()
    return chosen


def uniform(seed: int, position: int) -> float:
    """The draw for a position: a number in [0, 1) with 53 random bits, BLAKE2b of seed and
    position."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
