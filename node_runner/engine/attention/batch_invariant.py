"""Gathered attention that gives the same bits for a row, whatever rows are computed with it.

Kernels for few rows, and for lengths that fill no vector, add up in another order. So queries are
padded to whole tiles and keys to whole blocks; what pads is masked, and adds exact zeros at the
end.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from node_runner.engine.attention.gathered import GatheredGroup
from node_runner.engine.attention.interface import ScoreModifier, Segment
from node_runner.engine.device.tensors import concatenated

MAX_ROWS = 32
"""Rows that attend at once: torch's kernel for CPUs adds up otherwise for a hundred."""

ROW_TILE = 16
"""Rows to a multiple of which queries are padded."""

KEY_TILE = 128
"""Keys of one product where attention is written out."""


class BatchInvariantGroup(GatheredGroup):
    """A :class:`Group` in which a row's output does not depend on the other rows."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__(segments)
        block = segments[0].cache.pool.shape.block_size
        self._length = -(-self._length // block) * block

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, score: ScoreModifier
    ) -> torch.Tensor:
        """As :meth:`Group.attend` says."""
        _, heads, width = query.shape
        queries = query.view(self._count, self._each, heads, width)
        # A single row has one mask for all heads: the heads of a KV head can stand as its rows.
        single = score.plain and self._each == 1 and score.by_head is None
        if single:
            queries = queries.view(self._count, keys.shape[1], -1, width)
        else:
            queries = queries.transpose(1, 2)
        rows = queries.shape[2]
        queries = pad(queries, (0, 0, 0, -rows % ROW_TILE))
        bias = self._made_bias(score.window or None, score, 1 if single else queries.shape[2])
        bias = bias.expand(-1, -1, queries.shape[2], -1)
        own_keys, own_values = self._gathered(keys), self._gathered(values)
        parts = zip(queries.split(MAX_ROWS, 2), bias.split(MAX_ROWS, 2), strict=True)
        attended = concatenated(
            [_attended(part, own_keys, own_values, own_bias, score) for part, own_bias in parts], 2
        )[:, :, :rows]
        ordered = attended if single else attended.transpose(1, 2)
        return ordered.contiguous().view(self.rows, heads, -1)


def _attended(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    score: ScoreModifier,
) -> torch.Tensor:
    """Whole tiles of queries ``[count, heads, rows, key_dim]`` over keys ``[count, kv_heads,
    length, key_dim]``, to ``[count, heads, rows, value_dim]``."""
    if score.plain:
        return scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=bias,
            scale=score.scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
    missing = -keys.shape[2] % KEY_TILE
    keys, values = (pad(each, (0, 0, 0, missing)) for each in (keys, values))
    bias = pad(bias, (0, missing), value=float("-inf"))
    tiles = [
        torch.stack(
            [
                _written_out(*of_one, score)
                for of_one in zip(tile, keys, values, own_bias, strict=True)
            ]
        )
        for tile, own_bias in zip(queries.split(ROW_TILE, 2), bias.split(ROW_TILE, 2), strict=True)
    ]
    return torch.cat(tiles, 2)


def _written_out(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    score: ScoreModifier,
) -> torch.Tensor:
    """One tile of one generation's queries, ``[heads, tile, key_dim]`` to ``[heads, tile,
    value_dim]``, for scores that the fused kernel does not know. All products have one shape."""
    heads, rows, width = queries.shape
    grouped = queries.reshape(keys.shape[0], -1, width)
    scaling = width**-0.5 if score.scaling is None else score.scaling
    scores = torch.cat(
        [
            torch.bmm(grouped, tile.contiguous().transpose(1, 2)).view(heads, rows, KEY_TILE)
            for tile in keys.split(KEY_TILE, 1)
        ],
        -1,
    )
    scores = scores * scaling
    if score.softcap is not None:
        scores = (scores / score.softcap).tanh() * score.softcap
    scores = scores + bias
    if score.sinks is not None:
        sinks = score.sinks.view(heads, 1, 1).expand(-1, rows, -1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    output = torch.zeros(*grouped.shape[:2], values.shape[-1], device=values.device)
    for own, tile in zip(
        weights[..., : keys.shape[1]].split(KEY_TILE, -1), values.split(KEY_TILE, 1), strict=True
    ):
        output += torch.bmm(own.reshape(*grouped.shape[:2], KEY_TILE), tile.contiguous())
    return output.to(values.dtype).view(heads, rows, -1)
