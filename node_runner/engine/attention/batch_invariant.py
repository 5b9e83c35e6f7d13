"""Gathered attention that gives the same bits for a row, whatever rows are computed with it.

Kernels add up in another order for few rows, and for other numbers of keys. So all work is done in
tiles of one shape; what pads them is masked, and adds exact zeros at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch.nn.functional import pad

from node_runner.engine.attention.gathered import GatheredGroup, block_tables
from node_runner.engine.attention.interface import ScoreModifier, Segment
from node_runner.engine.device.tensors import concatenated

MAX_ROWS = 32
"""Rows that attend at once: torch's kernel for CPUs adds up otherwise for a hundred."""

ROW_TILE = 16
"""Rows to a multiple of which queries are padded."""

KEY_TILE = 128
"""Keys that are attended to at once."""

PROBES = 4
"""Of each kind, for one number of keys."""

flash_attention_for_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""What `scaled_dot_product_attention` calls on a CPU; that does not tell the log-sum-exp."""


class BatchInvariantGroup(GatheredGroup):
    """A :class:`Group` in which a row's output does not depend on the other rows, nor on how many
    keys come behind those that it sees."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__(segments)
        self._block = segments[0].cache.pool.shape.block_size
        longest = max(segment.end for segment in segments)
        shape = segments[0].cache.pool.shape
        width = max(shape.key_dim, shape.value_dim)
        short = _short_tiles(width, self._block, shape.dtype, shape.device.type)
        self._length = next(
            (length for length in short if longest <= length), -(-longest // KEY_TILE) * KEY_TILE
        )
        self._tables = block_tables(segments, self._length // self._block)
        self._known_masks: dict[tuple[int | None, int, int, int | None], list[_Mask]] = {}

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
        masks = self._masks(score, 1 if single else queries.shape[2], queries.shape[2])
        own_keys, own_values = self._gathered(keys), self._gathered(values)
        attend = _fused if score.plain and queries.device.type == "cpu" else _all_written_out
        parts = zip(queries.split(MAX_ROWS, 2), masks, strict=True)
        attended = concatenated(
            [attend(part, own_keys, own_values, mask, score) for part, mask in parts], 2
        )[:, :, :rows]
        ordered = attended if single else attended.transpose(1, 2)
        return ordered.contiguous().view(self.rows, heads, -1)

    def _masks(self, score: ScoreModifier, made: int, rows: int) -> list["_Mask"]:
        """The mask of each part of the rows; made once a batch, of ``made`` rows."""
        key = (score.window, made, rows, None if score.by_head is None else id(score.by_head))
        if key not in self._known_masks:
            bias = self._made_bias(score.window or None, score, made).expand(-1, -1, rows, -1)
            self._known_masks[key] = [_Mask(part) for part in bias.split(MAX_ROWS, 2)]
        return self._known_masks[key]

    def _gathered(self, pooled: torch.Tensor) -> torch.Tensor:
        first = self._segments[0].cache
        if (
            self._count == 1
            and first.contiguous_start is not None
            and self._length <= first.capacity
        ):
            own = pooled.narrow(0, first.contiguous_start, self._length)
        else:
            own = pooled.view(-1, self._block, *pooled.shape[1:]).index_select(0, self._tables)
        return own.view(self._count, self._length, *pooled.shape[1:]).transpose(1, 2)


class _Mask:
    """``bias``: what is added to the scores, ``[count, 1 or heads, rows, length]``."""

    def __init__(self, bias: torch.Tensor) -> None:
        self.bias = bias

    @cached_property
    def tiles(self) -> list["_TileMask"]:
        """The masks of the tiles of which some row sees something. Others change nothing."""
        made = [
            _TileMask(slice(begin, begin + KEY_TILE), bias, bias.isneginf().all(3))
            for begin, bias in zip(
                range(0, self.bias.shape[3], KEY_TILE), self.bias.split(KEY_TILE, 3), strict=True
            )
        ]
        return [tile for tile in made if not tile.hidden.all()]


@dataclass(frozen=True, slots=True)
class _TileMask:
    """``keys``: which they are. ``bias``: what is added to their scores. ``hidden``: whether a row
    sees none of them, bool ``[count, 1 or heads, rows]``."""

    keys: slice
    bias: torch.Tensor
    hidden: torch.Tensor


def _fused(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: _Mask,
    score: ScoreModifier,
) -> torch.Tensor:
    """Whole tiles of queries ``[count, heads, rows, key_dim]`` over whole tiles of keys ``[count,
    kv_heads, length, key_dim]``, to ``[count, heads, rows, value_dim]``: torch's kernel for CPUs,
    once a tile of keys, whose outputs are merged one after the other by their log-sum-exps (Milakov
    & Gimelshein 2018). A tile of which a row sees nothing adds zero and scales by one."""
    if keys.shape[2] <= KEY_TILE:
        return _attended(queries, keys, values, mask.bias, score)[0]
    merged = torch.zeros(*queries.shape[:3], values.shape[-1])
    total = torch.zeros(queries.shape[:3])
    highest = torch.full(queries.shape[:3], torch.finfo(torch.float32).min)
    for tile in mask.tiles:
        own_keys, own_values = keys[:, :, tile.keys], values[:, :, tile.keys]
        output, logsumexp = _attended(queries, own_keys, own_values, tile.bias, score)
        # Of a tile in which a row sees nothing the kernel says 0.
        logsumexp = logsumexp.masked_fill(tile.hidden, float("-inf"))
        before, highest = highest, torch.maximum(highest, logsumexp)
        kept, added = (before - highest).exp_(), (logsumexp - highest).exp_()
        total = total * kept + added
        merged = merged * kept[..., None] + output * added[..., None]
    return (merged / total[..., None]).to(queries.dtype)


def _attended(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    score: ScoreModifier,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel gives, and its log-sum-exps, float32 ``[count, heads, rows]``."""
    key_dim, value_dim = keys.shape[-1], values.shape[-1]
    width = max(key_dim, value_dim)  # the kernel knows one
    scale = key_dim**-0.5 if score.scaling is None else score.scaling
    arguments = [
        pad(each, (0, width - each.shape[-1])) if each.shape[-1] < width else each
        for each in (queries, keys, values)
    ]
    # Of a single head it splits the keys among the threads, if there are many.
    alone = queries.shape[0] * queries.shape[1] == 1
    if alone:
        arguments = [each.expand(2, -1, -1, -1) for each in arguments]
        bias = bias.expand(2, -1, -1, -1)
    output, logsumexp = flash_attention_for_cpu(*arguments, attn_mask=bias, scale=scale)
    output = output[..., :value_dim]
    return (output[:1], logsumexp[:1]) if alone else (output, logsumexp)


@cache
def _short_tiles(width: int, block: int, dtype: torch.dtype, device: str) -> list[int]:
    """Numbers of keys, whole blocks and less than a tile, for which the kernel gives the bits of a
    whole tile whose other keys are hidden: none where none were found, as on other devices.

    Half of the probes have weights that are all the same, and values of very different sizes whose
    sums are zero but for rounding, as those of products have.
    """
    if device != "cpu":
        return []
    random = torch.Generator().manual_seed(0)

    def probe(scale: float) -> list[torch.Tensor]:
        queries, keys = (
            scale * torch.randn(2, 1, rows, width, generator=random)
            for rows in (MAX_ROWS, KEY_TILE)
        )
        values = torch.randn(2, 1, KEY_TILE, width, generator=random)
        values *= 2.0 ** torch.randint(-6, 7, values.shape, generator=random)
        return [each.to(dtype) for each in (queries, keys, values)]

    probes = [probe(scale) for scale in (0.0, 1.0) for _ in range(PROBES)]

    def equals_whole_tile(length: int) -> bool:
        for queries, keys, values in probes:
            half = length // 2
            values[:, :, half:length] = -values[:, :, :half].flip(2)
            hidden = torch.zeros(2, 1, MAX_ROWS, KEY_TILE, dtype=dtype)
            hidden[..., length:] = float("-inf")
            whole, _ = flash_attention_for_cpu(queries, keys, values, attn_mask=hidden)
            for rows in (ROW_TILE, MAX_ROWS):
                part, _ = flash_attention_for_cpu(
                    queries[:, :, :rows],
                    keys[:, :, :length],
                    values[:, :, :length],
                    attn_mask=hidden[:, :, :rows, :length],
                )
                if not torch.equal(part, whole[:, :, :rows]):
                    return False
        return True

    return [length for length in range(block, KEY_TILE, block) if equals_whole_tile(length)]


def _all_written_out(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: _Mask,
    score: ScoreModifier,
) -> torch.Tensor:
    """As :func:`_fused`, for other devices, and for scores that the kernel does not know."""
    missing = -keys.shape[2] % KEY_TILE
    keys, values = (pad(each, (0, 0, 0, missing)) for each in (keys, values))
    bias = pad(mask.bias, (0, missing), value=float("-inf"))
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
    value_dim]``. All products have one shape."""
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
