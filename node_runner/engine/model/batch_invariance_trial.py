"""Whether a span is batch-invariant on this device, tried once when it is loaded.

What makes it so relies on kernels of torch, cuBLAS and Triton, which differ by device and version.
"""

import structlog
import torch

from node_runner.engine.attention.interface import Segment
from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.span_model import SpanModel

log = structlog.get_logger()

POSITIONS = 26
"""Positions of each generation of the trial: few, since a large model on a CPU takes a while."""

ALONE = (22, 1, 1, 1, 1)
"""Rows of each forward pass of a generation that is alone."""

IN_COMPANY = (5, 1, 16, 3, 1)
"""Rows of each forward pass of a generation that has others beside it."""

OTHERS = 4


def holds_batch_invariance(span: SpanModel) -> bool:
    """Whether the same rows give the same bits alone and beside others, in other chunks; the log
    has the result."""
    alone = _outputs(span, ALONE, others=0)
    held = torch.equal(alone, _outputs(span, IN_COMPANY, others=OTHERS))
    if held:
        log.info("batch_invariance_holds")
    else:
        log.warning("batch_invariance_fails")
    return held


def _outputs(span: SpanModel, chunks: tuple[int, ...], *, others: int) -> torch.Tensor:
    """What the span gives for one generation's rows ``[POSITIONS, hidden]``; at the edge, the
    logits of these."""
    shape = span.kv_shape
    blocks = -(-POSITIONS // shape.block_size)
    pool = KVBlockPool(shape, (1 + others) * blocks * shape.bytes_per_block)
    caches = [cache for _ in range(1 + others) if (cache := pool.reserve(POSITIONS)) is not None]
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(1 + others, POSITIONS, span.hidden_size, generator=random)
    hidden = hidden.to(span.device, span.dtype)
    outputs, begin = [], 0
    for rows in chunks:
        batch = RaggedBatch([Segment(cache, rows, begin) for cache in reversed(caches)])
        inputs = hidden[: len(caches), begin : begin + rows].flip(0).reshape(batch.rows, -1)
        output = span.forward(inputs, batch)
        outputs.append((span.logits(output) if span.edge else output)[-rows:])
        begin += rows
    return torch.cat(outputs)
