"""Packed attention: the rows of many generations in one forward.

The linear layers see all rows as one sequence; attention, registered with transformers under
:data:`NAME`, runs for each generation on its own KV cache. Nothing is padded.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from node_runner.engine.kv import KVCache

NAME = "far_packed"


@dataclass(slots=True)
class Segment:
    """Rows ``[begin, begin + rows)`` of the pack: one generation, from ``position`` on."""

    cache: KVCache
    begin: int
    rows: int
    position: int
    mask: torch.Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.rows > 1 and self.position > 0:
            # Row r may look at everything up to its own position.
            length = self.position + self.rows
            ones = torch.ones(self.rows, length, dtype=torch.bool, device=self.cache.keys.device)
            self.mask = ones.tril(diagonal=self.position)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    segments: list[Segment],
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of each segment on its own cache.

    Args:
        query: ``[1, heads, rows, head_dim]``; ``key`` and ``value`` likewise with kv_heads.
        segments: Passed through the model's forward as a keyword argument.

    Returns:
        ``[1, rows, heads, head_dim]``, and none for the weights.
    """
    layer = module.layer_idx
    _, heads, rows, head_dim = query.shape
    kv_heads = key.shape[1]
    output = query.new_empty(1, rows, heads, head_dim)
    for segment in segments:
        part = slice(segment.begin, segment.begin + segment.rows)
        keys, values = segment.cache.write(
            layer, segment.position, key[0, :, part], value[0, :, part]
        )
        if segment.rows == 1:
            # One row sees everything: heads of a group are as good as rows without a mask.
            grouped = query[0, :, segment.begin].view(1, kv_heads, heads // kv_heads, head_dim)
            attended = scaled_dot_product_attention(
                grouped, keys[None], values[None], scale=scaling
            )
            output[0, segment.begin] = attended.view(heads, head_dim)
        else:
            attended = scaled_dot_product_attention(
                query[:, :, part],
                keys[None],
                values[None],
                attn_mask=segment.mask,
                is_causal=segment.mask is None,
                scale=scaling,
                enable_gqa=kv_heads != heads,
            )
            output[0, part] = attended[0].transpose(0, 1)
    return output, None


AttentionInterface.register(NAME, packed_attention)
