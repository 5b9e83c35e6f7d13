"""Counter-based sampling: the draw for a position depends on seed and position alone.

So a generation that continues on another node, or again from its prompt, has the same tokens.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch

from mesh.wire import SamplingParams

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
    from the nucleus (top-p; Holtzman et al. 2020).

    Args:
        logits: ``[rows, vocab]``, float32.
        params: How to sample, by row.
        positions: Index in the text (prompt included) of the token to be sampled, by row.
        process: What a checkpoint's settings make of the logits before tokens are chosen.

    Returns:
        Token ids, by row; :data:`NOT_FINITE` where none can be chosen.
    """
    likeliest = logits.argmax(dim=-1)  # NaN counts as the largest, and infinity is
    finite = logits.gather(1, likeliest[:, None])[:, 0].isfinite()
    if process is not None:
        logits = process(logits)
        likeliest = logits.argmax(dim=-1)
    chosen: list[int] = likeliest.where(finite, NOT_FINITE).tolist()
    drawn = [row for row, own in enumerate(params) if own.temperature > 0 <= chosen[row]]
    if not drawn:
        return chosen
    temperature = _column([params[row].temperature for row in drawn], logits)
    temperature = temperature.clamp(min=MIN_TEMPERATURE)
    top_p = _column([params[row].top_p for row in drawn], logits)
    draw = _column([uniform(params[row].seed, positions[row]) for row in drawn], logits)
    probabilities = torch.softmax(logits[drawn].double() / temperature, dim=-1)
    ranked, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    reached = ranked.cumsum(dim=-1)
    # The nucleus: the fewest tokens that together reach top_p; the first is always in it.
    before = reached - ranked
    nucleus = ranked.masked_fill(before >= top_p, 0.0)
    reached = nucleus.cumsum(dim=-1)
    ranks = torch.searchsorted(reached, draw * reached[:, -1:], right=True)
    # A GPU's sums may not ascend by their last bit: no rank is behind the nucleus for that.
    ranks = ranks.minimum(torch.searchsorted(before, top_p) - 1).clamp(min=0)
    for row, token in zip(drawn, tokens.gather(1, ranks)[:, 0].tolist(), strict=True):
        chosen[row] = token
    return chosen


def uniform(seed: int, position: int) -> float:
    """The draw for a position: a number in [0, 1) with 53 random bits, BLAKE2b of seed and
    position."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
