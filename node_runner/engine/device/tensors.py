"""Dtypes by name, numbers onto the device."""

import math
from collections.abc import Sequence

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


NAMES = {dtype: name for name, dtype in DTYPES.items()}


def on_device(
    numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device
) -> torch.Tensor:
    """Numbers as an int64 tensor. To a GPU they go from pinned memory: nothing waits for what it
    still computes."""
    tensor = torch.tensor(numbers, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


def is_finite(hidden: torch.Tensor) -> bool:
    """Whether all values are numbers: one sum tells, at a tenth of the cost of asking each."""
    return math.isfinite(hidden.sum(dtype=torch.float32).item())
