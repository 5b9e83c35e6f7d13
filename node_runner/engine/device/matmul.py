"""Products of few rows with large weights, as decoding makes them."""

import torch
from torch.nn.functional import linear

FEW_ROWS = 5
"""Up to so many rows, a CPU's BLAS reads the weights up to twice as fast if they stand on the left
(`python -m benchmarks.products`)."""


def product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``rows @ weight.T + bias``: ``[rows, in]`` and ``[out, in]`` to ``[rows, out]``."""
    widens = weight.shape[0] > weight.shape[1]
    if widens and 1 < rows.shape[0] <= FEW_ROWS and weight.device.type == "cpu":
        turned = torch.mm(weight, rows.t()).t().contiguous()
        return turned if bias is None else turned + bias
    return linear(rows, weight, bias)
