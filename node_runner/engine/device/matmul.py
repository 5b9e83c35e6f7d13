"""Matrix products of few rows with large weights, as decode steps compute them."""

from collections.abc import Callable

import torch
from torch.nn import functional

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""``rows @ weight.T + bias``: ``[rows, in]``, ``[out, in]`` and ``[out]`` or none, to ``[rows,
out]``."""

MAX_TRANSPOSED_ROWS = 5
"""Rows up to which a CPU's BLAS reads the weights up to twice as fast if they are the left factor
(`python -m benchmarks.products`)."""


def linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``rows @ weight.T + bias``: ``[rows, in]`` and ``[out, in]`` to ``[rows, out]``, in whichever
    order of factors is faster."""
    widens = weight.shape[0] > weight.shape[1]
    if widens and 1 < rows.shape[0] <= MAX_TRANSPOSED_ROWS and weight.device.type == "cpu":
        output = torch.mm(weight, rows.t()).t().contiguous()
        return output if bias is None else output + bias
    return functional.linear(rows, weight, bias)
