"""Whether a span can be computed in float16, whose largest number is 65,504.

A number beyond that becomes infinite, and the text wrong from there on. bfloat16, in which most
checkpoints were trained, goes as far as float32.
"""

import torch

from mesh.errors import UnsupportedModel
from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.span_model import SpanModel

OVERFLOWING = frozenset({"gemma2", "gemma3_text", "glm4"})
"""Families whose published checkpoints are known for activations beyond float16's range; vLLM
refuses them in float16, too (`_FLOAT16_NOT_SUPPORTED_MODELS`)."""

TRIAL_ROWS = 32

INSTEAD = "Use --dtype float32, or bfloat16 where the device has it."


def check_family(model_type: object) -> None:
    """
    Raises:
        UnsupportedModel: models of this family overflow in float16.
    """
    if model_type in OVERFLOWING:
        raise UnsupportedModel(f"Models of the family {model_type} overflow in float16. {INSTEAD}")


def check_span(span: SpanModel) -> None:
    """Look at all weights, and compute some rows: embedded tokens where the span has the edge, else
    random ones.

    Raises:
        UnsupportedModel: a weight or an output is beyond float16's range.
    """
    for weight in span.weights:
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise UnsupportedModel(f"The model has weights that float16 cannot hold. {INSTEAD}")
    output = _trial(span)
    if not bool(torch.isfinite(output).all()):
        raise UnsupportedModel(f"The model overflows when it is computed in float16. {INSTEAD}")


def _trial(span: SpanModel) -> torch.Tensor:
    rows = min(TRIAL_ROWS, span.max_positions)
    if span.edge:
        step = max(1, span.vocab_size // rows)
        ids = [row * step % span.vocab_size for row in range(rows)]
        hidden = span.embed(ids, list(range(rows)))
    else:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, span.hidden_size, generator=generator)
        hidden = hidden.to(span.device, span.dtype)
    pool = KVBlockPool(span.kv_shape, rows * span.kv_shape.bytes_per_block)
    cache = pool.reserve(rows)
    if cache is None:
        raise RuntimeError(f"There is no free KV for {rows} positions.")
    output = span.forward(hidden, RaggedBatch([Segment(cache, rows=rows, position=0)]))
    return span.logits(output) if span.edge else output
