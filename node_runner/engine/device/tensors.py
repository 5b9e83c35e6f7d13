"""Dtypes by name, and small operations on tensors."""

import math
from collections.abc import Sequence

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Dtypes that a model computes in, by name."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Names of :data:`DTYPES`."""


def on_device(
    numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device
) -> torch.Tensor:
    """Numbers as an int64 tensor of their shape. To a GPU they are copied from pinned memory, which
    does not wait for kernels that still run there."""
    tensor = torch.tensor(numbers, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


def concatenated(parts: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """The parts one after the other along ``dim``; a single part as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def is_finite(hidden: torch.Tensor) -> bool:
    """Whether all values are finite: by their sum, which takes a tenth of the time of looking at
    each; only where that overflows or is not a number, by each."""
    return math.isfinite(hidden.sum(dtype=torch.float32).item()) or bool(hidden.isfinite().all())
