"""Attention over a pack: each segment attends on its own KV cache.

The linear layers of the model run once over all packed rows; only here are generations told apart.
Registered with transformers under the name :data:`NAME`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from node_runner.engine.kv import KVCache

NAME = "far_packed"


class Segment:
    """Rows ``[begin, begin + rows)`` of the pack: positions of one generation from ``position``."""

    def __init__(self, cache: KVCache, begin: int, rows: int, position: int) -> None:
        self.cache = cache
        self.begin = begin
        self.rows = rows
        self.position = position
        self.mask: torch.Tensor | None = None
        if self.rows > 1 and self.position > 0:
            # Row r may look at everything up to its own position.
            length = self.position + self.rows
            ones = torch.ones(self.rows, length, dtype=torch.bool, device=self.cache.device)
            self.mask = ones.tril(diagonal=self.position)


def attend(
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    segments: Sequence[Segment],
) -> torch.Tensor:
    """Write each segment's keys and values into its cache; attend over all that it then holds.

    Args:
        layer: Index of the layer within the span.
        query: ``[1, heads, rows, head_dim]``, positions already encoded.
        key: ``[1, kv_heads, rows, head_dim]``.
        value: ``[1, kv_heads, rows, head_dim]``.
        scaling: Of the scores; one over the root of ``head_dim`` if not given.
        segments: What the rows belong to, in their order.

    Returns:
        ``[1, rows, heads, head_dim]``.
    """
    if len(segments) == 1:
        return _attend(layer, query, key, value, scaling, segments[0])
    rows = [segment.rows for segment in segments]
    parts = zip(
        segments, query.split(rows, 2), key.split(rows, 2), value.split(rows, 2), strict=True
    )
    return torch.cat(
        [_attend(layer, q, k, v, scaling, segment) for segment, q, k, v in parts], dim=1
    )


def _attend(
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    segment: Segment,
) -> torch.Tensor:
    _, heads, rows, head_dim = query.shape
    kv_heads = key.shape[1]
    keys, values = segment.cache.write(layer, segment.position, key, value)
    if rows == 1:
        # One row sees everything: heads of a group are as good as rows without a mask.
        grouped = query.view(1, kv_heads, heads // kv_heads, head_dim)
        attended = scaled_dot_product_attention(grouped, keys, values, scale=scaling)
        return attended.view(1, 1, heads, head_dim)
    attended = scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=segment.mask,
        is_causal=segment.mask is None,
        scale=scaling,
        enable_gqa=kv_heads != heads,
    )
    return attended.transpose(1, 2)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    segments: Sequence[Segment],
    **_: object,
) -> tuple[torch.Tensor, None]:
    """:func:`attend`, as transformers calls it; none for the weights."""
    return attend(module.layer_idx, query, key, value, scaling, segments), None


AttentionInterface.register(NAME, packed_attention)
