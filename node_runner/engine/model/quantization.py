"""Weights in 8 or 4 bits: bitsandbytes makes them while transformers loads, here they are used.

Both are weight-only: activations are not rounded, so that what a row gives does not depend on the
rows that it is packed with, nor on the device.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig

from mesh.errors import UnsupportedModel

CACHED = 2**20
"""Weights that a CPU unpacks at a time: as many as its caches hold. A whole product of 4096 x 4096
takes ten times as long, nearly all of it for pages that are mapped and dropped again."""

SCRATCH = 2**26
"""Weights that a GPU unpacks at a time: this bounds the memory it takes beside the weights."""

LEVELS = 127
"""bitsandbytes' 8-bit weights are whole numbers up to this, times the largest of their row."""

HEADROOM = 128
"""What inputs are divided by, and outputs multiplied by: else sums of up to 127 times an input
would overflow float16. A power of two, so nothing is rounded."""


def quantizer(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How transformers shall load a span's layers; none if as they are.

    Raises:
        UnsupportedModel: bitsandbytes is not installed.
    """
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
    return UnsupportedModel(
        "Quantization needs bitsandbytes, which is not installed here: the `node` extra brings it."
    )


def settle(model: nn.Module) -> list[torch.Tensor]:
    """Have 8-bit layers compute with their weights only.

    Returns:
        The scales of 4-bit weights, which are no parameters.
    """
    scales: list[torch.Tensor] = []
    for name, module in list(model.named_modules()):
        match type(module).__name__:
            case "Linear8bitLt":
                model.set_submodule(name, Int8Linear(module))
            case "Linear4bit":
                state = module.weight.quant_state
                scales += [state.absmax, state.code]
    return scales


class Int8Linear(nn.Module):
    """``[..., in_features] → [..., out_features]``, with the weights of bitsandbytes'
    `Linear8bitLt`.

    bitsandbytes' own product rounds activations to 8 bits, to float16 where they are outliers of
    the whole pack, and on most CPUs is slower than this.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.in_features: int = theirs.in_features
        self.out_features: int = theirs.out_features
        scales = theirs.weight.SCB * (HEADROOM / LEVELS)
        self.weight = nn.Parameter(theirs.weight.CB, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = theirs.bias
        unpacked = CACHED if self.weight.device.type == "cpu" else SCRATCH
        self._rows = max(1, unpacked // self.in_features)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        lowered = hidden / HEADROOM
        parts = [linear(lowered, rows.to(hidden.dtype)) for rows in self.weight.split(self._rows)]
        output = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        output = (output * self.scales).to(hidden.dtype)
        return output if self.bias is None else output + self.bias
