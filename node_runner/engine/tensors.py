"""Tensors as raw little-endian bytes, and back."""

import torch

from mesh.errors import WireError
from mesh.wire import Step

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def to_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor; shares its memory."""
    return memoryview(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B")


def from_step(step: Step, *, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A step's hidden states ``[rows, width]``.

    Raises:
        WireError: width or dtype is not the model's.
    """
    if step.width != width or DTYPES[step.dtype] != dtype:
        raise WireError(
            f"A step of width {step.width} in {step.dtype}; this model has width {width} "
            f"in {NAMES[dtype]}."
        )
    flat = torch.frombuffer(bytearray(step.data), dtype=dtype)
    return flat.view(step.rows, step.width).to(device)
