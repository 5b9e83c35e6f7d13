"""Weights in 8 or 4 bits: bitsandbytes makes them while transformers loads; here is what uses them.

Quantization is weight-only: activations are not rounded, so that a row's output does not depend on
the other rows of its batch, nor on the device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig, Mxfp4Config
from transformers.utils.quantization_config import QuantizationConfigMixin

from mesh.errors import UnsupportedModel
from node_runner.engine.device.batch_invariant import in_tiles
from node_runner.engine.device.tensors import concatenated

CPU_CHUNK = 2**20
"""Weights that a CPU dequantizes at a time: as many as its caches hold. A whole weight of
4096 x 4096 takes ten times as long, nearly all of it to map pages and drop them again."""

GPU_CHUNK = 2**26
"""Weights that a GPU dequantizes at a time: bounds the memory that it takes beside the weights."""

LEVELS = 127
"""bitsandbytes' 8-bit weights are whole numbers up to this, times the largest of their row."""

HEADROOM = 128
"""Inputs are divided by this number, and outputs multiplied by it: else sums of up to 127 times an
input would overflow float16. A power of two, so nothing is rounded."""


def quantizer(
    quantization: str, dtype: torch.dtype, config: Mapping[str, Any]
) -> QuantizationConfigMixin | None:
    """How transformers is to quantize a span's layers, or to dequantize them; none if they stay as
    they are.

    Args:
        quantization: One of :data:`mesh.model.memory_footprint.QUANTIZATIONS`.
        dtype: What is computed in.
        config: The checkpoint's config.json.

    Raises:
        UnsupportedModel: bitsandbytes is not installed.
    """
    if config.get("quantization_config") is not None:
        return Mxfp4Config(dequantize=True)  # no other passes `check_model`
    try:
        match quantization:
            case "int8":
                return BitsAndBytesConfig(load_in_8bit=True)
            case "nf4":
                return BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_compute_dtype=dtype,
                )
    except ImportError as error:
        raise missing_library() from error
    return None


def missing_library() -> UnsupportedModel:
    """The error to raise where bitsandbytes is not installed."""
    return UnsupportedModel(
        "Quantization needs bitsandbytes, which is not installed here: the `node` extra brings it."
    )


def use_weight_only(model: nn.Module, *, batch_invariant: bool) -> list[torch.Tensor]:
    """Replace bitsandbytes' 8-bit layers, which round activations, by :class:`Int8Linear`.

    Args:
        model: Its layers are changed.
        batch_invariant: Whether what a row gives must not depend on the rows beside it.

    Returns:
        The scales of 4-bit weights, which are not among the model's parameters.
    """
    scales: list[torch.Tensor] = []
    for name, module in list(model.named_modules()):
        match type(module).__name__:
            case "Linear8bitLt":
                model.set_submodule(name, Int8Linear(module))
            case "Linear4bit":
                state = module.weight.quant_state
                scales += [state.absmax, state.code]
                if batch_invariant:
                    module.forward = in_tiles(module.forward)
    return scales


class Int8Linear(nn.Module):
    """``[..., in_features] → [..., out_features]``, with the weights of bitsandbytes'
    `Linear8bitLt`.

    bitsandbytes' own product rounds activations to 8 bits, to float16 where they are outliers of
    the whole batch (LLM.int8(), Dettmers et al. 2022), and is slower on most CPUs.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.in_features: int = original.in_features
        self.out_features: int = original.out_features
        scales = original.weight.SCB * (HEADROOM / LEVELS)
        self.weight = nn.Parameter(original.weight.CB, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = original.bias
        chunk = CPU_CHUNK if self.weight.device.type == "cpu" else GPU_CHUNK
        self._rows = max(1, chunk // self.in_features)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        lowered = hidden / HEADROOM
        parts = [linear(lowered, rows.to(hidden.dtype)) for rows in self.weight.split(self._rows)]
        output = concatenated(parts, -1)
        output = (output * self.scales).to(hidden.dtype)
        return output if self.bias is None else output + self.bias
