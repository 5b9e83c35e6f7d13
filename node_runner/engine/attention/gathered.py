"""Attention that gathers KV blocks side by side before it reads them: the path of a CPU."""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from node_runner.engine.attention.interface import ScoreModifier, Segment


class GatheredGroup:
    """A :class:`Group` whose KV blocks are gathered side by side, or are contiguous already."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._count = len(segments)
        self._each = segments[0].rows
        self.rows = self._count * self._each
        self._biases: dict[tuple[int | None, int, int | None], torch.Tensor] = {}
        block = segments[0].cache.pool.shape.block_size
        if self._count == 1:
            self._length = segments[0].end
        else:
            blocks = -(-max(segment.end for segment in segments) // block)
            self._length = blocks * block
            self._tables = block_tables(segments, blocks)
            self._block = block

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, score: ScoreModifier
    ) -> torch.Tensor:
        """As :meth:`Group.attend` says."""
        _, heads, width = query.shape
        kv_heads = keys.shape[1]
        bias = self._bias(score)
        own_keys, own_values = self._gathered(keys), self._gathered(values)
        queries = query.view(self._count, self._each, heads, width)
        if score.plain and self._each == 1 and (bias is None or bias.shape[1] == 1):
            # A single row has one mask for all heads: the heads of a KV head can stand as its rows.
            queries = queries.view(self._count, kv_heads, heads // kv_heads, width)
            attended = scaled_dot_product_attention(
                queries, own_keys, own_values, attn_mask=bias, scale=score.scaling
            )
            return attended.view(self.rows, heads, -1)
        queries = queries.transpose(1, 2)
        if score.plain:
            attended = scaled_dot_product_attention(
                queries,
                own_keys,
                own_values,
                attn_mask=bias,
                is_causal=bias is None and self._each > 1,
                scale=score.scaling,
                enable_gqa=kv_heads != heads,
            )
        else:
            attended = _softmaxed(queries, own_keys, own_values, bias, score)
        return attended.transpose(1, 2).reshape(self.rows, heads, -1)

    def _gathered(self, pooled: torch.Tensor) -> torch.Tensor:
        """Keys or values that the segments' caches hold: ``[count, kv_heads, length, width]``."""
        if self._count > 1:
            own = pooled.view(-1, self._block, *pooled.shape[1:]).index_select(0, self._tables)
        else:
            cache = self._segments[0].cache
            if cache.contiguous_start is None:
                own = pooled.index_select(0, cache.slots[: self._length])
            else:
                own = pooled.narrow(0, cache.contiguous_start, self._length)
        return own.view(self._count, self._length, *pooled.shape[1:]).transpose(1, 2)

    def _bias(self, score: ScoreModifier) -> torch.Tensor | None:
        """The bias that is added to the scores, ``[count, 1 or heads, each, length]``; made once a
        batch."""
        window = score.window if score.window and score.window < self._length else None
        # The kernel masks a prompt from its beginning by itself; one row sees all of one segment.
        masked = self._each > 1 and (self._segments[0].position > 0 or not score.plain)
        if self._count == 1 and window is None and score.by_head is None and not masked:
            return None
        return self._made_bias(window, score, self._each)

    def _made_bias(self, window: int | None, score: ScoreModifier, rows: int) -> torch.Tensor:
        """The bias of ``rows`` rows of each segment, from its first one on."""
        key = (window, rows, None if score.by_head is None else id(score.by_head))
        if key not in self._biases:
            self._biases[key] = self._make_bias(window, score, rows)
        return self._biases[key]

    def _make_bias(self, window: int | None, score: ScoreModifier, each: int) -> torch.Tensor:
        pool = self._segments[0].cache.pool
        make = {"device": pool.shape.device}
        starts = torch.tensor([segment.position for segment in self._segments], **make)
        rows = starts[:, None, None] + torch.arange(each, **make)[:, None]
        distance = rows - torch.arange(self._length, **make)
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        bias = torch.zeros(hidden.shape, dtype=pool.shape.dtype, **make)
        if score.by_head is None:
            return bias.masked_fill_(hidden, float("-inf"))[:, None]
        bias = bias[:, None]
        if score.slopes is not None:
            bias = bias - score.slopes[:, None, None].to(bias.dtype) * distance[:, None]
        if score.key_bias is not None:
            positions = torch.arange(self._length, **make)
            bias = bias + score.key_bias(positions)[:, None].to(bias.dtype)
        return bias.masked_fill_(hidden[:, None], float("-inf"))


def block_tables(segments: Sequence[Segment], blocks: int) -> torch.Tensor:
    """So many blocks of each segment, one segment after the other. Shorter tables are padded with
    their own first block, which the mask hides."""
    tables = [segment.cache.block_table[:blocks] for segment in segments]
    return torch.cat(
        [part for table in tables for part in (table, table[:1].expand(blocks - len(table)))]
    )


def _softmaxed(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    score: ScoreModifier,
) -> torch.Tensor:
    """Attention written out, for scores that the fused kernel does not know."""
    count, heads, rows, width = queries.shape
    kv_heads = keys.shape[1]
    grouped = queries.reshape(count, kv_heads, -1, rows, width)
    scaling = width**-0.5 if score.scaling is None else score.scaling
    scores = grouped @ keys[:, :, None].transpose(-1, -2) * scaling
    scores = scores.view(count, heads, rows, -1)
    if score.softcap is not None:
        scores = (scores / score.softcap).tanh() * score.softcap
    if bias is not None:
        scores = scores + bias
    if score.sinks is not None:
        sinks = score.sinks.view(1, heads, 1, 1).expand(count, -1, rows, -1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    if score.sinks is not None:
        weights = weights[..., :-1]
    weights = weights.reshape(count, kv_heads, -1, rows, weights.shape[-1])
    return (weights @ values[:, :, None]).reshape(count, heads, rows, -1)
