"""Hidden states as raw little-endian bytes, and back: in the model's dtype, or in fewer bits."""

import torch
from torch.nn.functional import pad

from mesh.errors import WireError
from mesh.wire import INT8_BLOCK, Steps
from node_runner.engine.device.tensors import DTYPES


def to_bytes(tensor: torch.Tensor, dtype: str) -> memoryview:
    """Hidden states as :class:`mesh.wire.Steps` carry them: finite ones stay finite.

    Args:
        tensor: ``[rows, width]``.
        dtype: One of :data:`mesh.wire.DTYPES`.

    Returns:
        The bytes; they share the tensor's memory where it is on the CPU and in that dtype already.
    """
    if dtype == "int8":
        return _bytes(_quantized(tensor))
    return _bytes(_converted(tensor, DTYPES[dtype]).cpu().contiguous().view(torch.uint8))


def from_steps(
    steps: Steps, *, width: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The hidden states of all steps, one after the other.

    What was finite on the wire stays finite: the sender may compute in another dtype.

    Args:
        steps: As they came.
        width: The model's hidden size.
        dtype: The model's.
        device: Where the model computes.

    Returns:
        ``[rows, width]``, in ``dtype`` on ``device``.

    Raises:
        WireError: the width is not the model's.
    """
    if steps.width != width:
        raise WireError(f"Steps of width {steps.width}; this model has width {width}.")
    received = torch.frombuffer(bytearray(steps.data), dtype=torch.uint8).to(device)
    if steps.dtype == "int8":
        hidden = _dequantized(received, steps.rows, width)
    else:
        hidden = received.view(DTYPES[steps.dtype]).view(steps.rows, width)
    return _converted(hidden, dtype)


def _converted(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In another dtype. Finite values that it cannot hold become its largest; what is not finite
    stays so."""
    largest = torch.finfo(dtype).max
    if torch.finfo(hidden.dtype).max > largest:
        hidden = hidden.float()
        hidden = torch.where(hidden.isinf(), hidden, hidden.clamp(-largest, largest))
    return hidden.to(dtype)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().numpy()).cast("B")


def _quantized(tensor: torch.Tensor) -> torch.Tensor:
    rows, width = tensor.shape
    blocks = pad(tensor.float(), (0, -width % INT8_BLOCK)).view(rows, -1, INT8_BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    # A float16 scale that was rounded down would let the largest value overflow.
    scales = (largest / 126).clamp(torch.finfo(torch.float16).tiny, 60000).half()
    values = (blocks / scales.float()).round().clamp(-127, 127).to(torch.int8)
    values = values.view(rows, -1)[:, :width].contiguous()
    parts = (values.view(torch.uint8).flatten(), scales.flatten().view(torch.uint8))
    return torch.cat(parts).cpu()


def _dequantized(received: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    values = received[: rows * width].view(torch.int8).view(rows, width).float()
    scales = received[rows * width :].clone().view(torch.float16).float().view(rows, -1)
    return values * scales.repeat_interleave(INT8_BLOCK, -1)[:, :width]
