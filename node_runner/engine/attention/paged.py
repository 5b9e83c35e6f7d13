"""Paged attention, which reads KV blocks in place, by FlexAttention: the path of a GPU.

To FlexAttention the whole pool is one sequence of keys, which all generations share. The block mask
names the blocks that each of them reads, and what lies in them is masked by the position that it
has in its own generation.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from node_runner.engine.attention.kv_cache import PAGED_BLOCK_SIZE, KVBlockPool
from node_runner.engine.device.tensors import on_device

if TYPE_CHECKING:
    from node_runner.engine.attention.interface import ScoreModifier, Segment

MASK_ROWS = 1024
"""Rows of one block of a mask: all rows of a generation, since they read the same KV blocks. A
prefill chunk has as many as a decode step, so that one kernel serves both."""

FOREIGN = 2**30
"""First position of a block that is not the generation's own: behind all rows, so it is masked."""

RECOMPILE_LIMIT = 64
"""Kernels that a process compiles at most: for each bucket of a graph, for one row and for more, of
one generation and of more, times the ways in which its layers score. More are a mistake, and an
error: without a kernel FlexAttention would compute scores for the whole pool."""

BATCH_INVARIANT_KERNEL = {"BACKEND": "TRITON", "BLOCK_M": 64, "BLOCK_N": 64}
"""The same kernel for one row and for many, with tiles of one size: a row's keys are added up in
their order. The kernel for short queries splits the keys by how many generations there are."""


class BlockTables:
    """Which blocks of a pool up to ``count`` generations read, on the pool's device.

    `fill` writes into the same tensors each time, so that a captured graph reads the new contents.
    They take 8 bytes for each generation and block of the pool.
    """

    def __init__(self, count: int, pool: KVBlockPool) -> None:
        make = {"dtype": torch.int32, "device": pool.shape.device}
        self.starts = torch.zeros(count, **make)
        """The position of each generation's first row, int32 ``[count]``."""
        self.counts = torch.zeros(count, **make)
        """How many blocks each generation reads, int32 ``[count]``."""
        self.blocks = torch.zeros(count, pool.num_blocks, **make)
        """Their numbers in the pool, those that are read in front, int32 ``[count, blocks]``."""
        self.block_positions = torch.full((count, pool.num_blocks), FOREIGN, **make)
        """The position that each block of the pool begins with, int32 ``[count, blocks]``; FOREIGN
        where it is another generation's."""
        self.batch_invariant = pool.shape.batch_invariant
        """Whether what attention gives for a row must not depend on the rows beside it."""
        self.end = 0
        """Positions of the longest generation, those of its rows included."""

    def fill(self, segments: "Sequence[Segment]") -> None:
        """Fill the tables for a batch. If there are fewer segments than ``count``, the remaining
        generations read nothing."""
        device = self.starts.device
        used = [-(-segment.end // PAGED_BLOCK_SIZE) for segment in segments]
        starts, counts = on_device([[s.position for s in segments], used], device)
        # Not nonzero(), and sums known here: nothing has to wait for the device.
        rows = torch.arange(len(segments), device=device)
        rows = rows.repeat_interleave(counts, output_size=sum(used))
        columns = torch.arange(sum(used), device=device) - (counts.cumsum(0) - counts)[rows]
        parts = [
            segment.cache.block_table[:count] for segment, count in zip(segments, used, strict=True)
        ]
        blocks = torch.cat(parts)
        self.starts[: len(segments)] = starts
        self.counts.zero_()
        self.counts[: len(segments)] = counts
        self.blocks[rows, columns] = blocks.int()
        self.block_positions.fill_(FOREIGN)
        self.block_positions[rows, blocks] = (columns * PAGED_BLOCK_SIZE).int()
        self.end = max(segment.end for segment in segments)


class PagedGroup:
    """A :class:`Group` that reads KV blocks in place.

    Args:
        tables: The blocks of its generations.
        each: Rows of each generation.
        static: Whether the number of generations is one of few, for each of which a kernel of its
            own pays.
    """

    def __init__(self, tables: BlockTables, *, each: int, static: bool = False) -> None:
        self._tables = tables
        self._count = len(tables.counts)
        self._each = each
        self._static = static
        self.rows = self._count * each

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, score: "ScoreModifier"
    ) -> torch.Tensor:
        """As :meth:`Group.attend` says."""
        heads, width = query.shape[1:]
        queries = query.view(self._count, self._each, heads, width).transpose(1, 2)
        if self._static:
            torch._dynamo.mark_static(queries, 0)
        attended = flex(query.device)(
            queries,
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            score_mod=self._score_mod(score),
            block_mask=self._mask(len(keys), score.window),
            scale=score.scaling,
            enable_gqa=heads != keys.shape[1],
            return_aux=None if score.sinks is None else AuxRequest(lse=True),
            kernel_options=self._kernel_options(),
        )
        if score.sinks is not None:
            attended, aux = attended
            kept = torch.sigmoid(aux.lse - score.sinks[:, None])
            attended = attended * kept[..., None].to(attended.dtype)
        return attended.transpose(1, 2).reshape(self.rows, heads, -1)

    def _kernel_options(self) -> dict[str, Any]:
        if self._tables.batch_invariant:
            return BATCH_INVARIANT_KERNEL
        # The kernel for short queries takes up to 128, counting all heads that share a key: one row
        # always fits.
        return {"BACKEND": "AUTO" if self._each == 1 else "TRITON"}

    def _mask(self, positions: int, window: int | None) -> BlockMask:
        firsts, starts = self._tables.block_positions, self._tables.starts

        def visible(b: Any, _h: Any, q: Any, kv: Any) -> Any:
            return firsts[b, kv // PAGED_BLOCK_SIZE] + kv % PAGED_BLOCK_SIZE <= starts[b] + q

        def within(b: Any, h: Any, q: Any, kv: Any) -> Any:
            position = firsts[b, kv // PAGED_BLOCK_SIZE] + kv % PAGED_BLOCK_SIZE
            return visible(b, h, q, kv) & (position > lows[b] + q)

        if window is not None:
            # A tensor made anew: a number would be compiled in, and a kept tensor would be stale in
            # a graph.
            lows = starts - window
        return BlockMask.from_kv_blocks(
            self._tables.counts[:, None, None],
            self._tables.blocks[:, None, None],
            BLOCK_SIZE=(_mask_rows(self._each), PAGED_BLOCK_SIZE),
            mask_mod=visible if window is None else within,
            seq_lengths=(self._each, positions),
            compute_q_blocks=False,
        )

    def _score_mod(self, score: "ScoreModifier") -> Callable[..., Any] | None:
        """FlexAttention's ``score_mod``; none if scores are not modified. All that it reads is in
        tensors, since a number would be compiled in."""
        if score.softcap is None and score.by_head is None:
            return None
        firsts, starts = self._tables.block_positions, self._tables.starts
        make = {"device": starts.device}
        slopes = score.slopes
        cap = bias = last = None
        if score.softcap is not None:
            cap = torch.full((), score.softcap, **make)
        if score.key_bias is not None:
            bias = score.key_bias(torch.arange(self._tables.end, **make))
            last = torch.full((), self._tables.end - 1, dtype=torch.int32, **make)

        def modified(value: Any, b: Any, h: Any, q: Any, kv: Any) -> Any:
            position = firsts[b, kv // PAGED_BLOCK_SIZE] + kv % PAGED_BLOCK_SIZE
            if cap is not None:
                value = (value / cap).tanh() * cap
            if slopes is not None:
                value = value - slopes[h] * (starts[b] + q - position)
            if bias is not None:
                value = value + bias[h, torch.minimum(position, last)]
            return value

        return modified


def _mask_rows(rows: int) -> int:
    return max(MASK_ROWS, 2 ** (rows - 1).bit_length())


def flex(device: torch.device) -> Callable[..., Any]:
    """FlexAttention as it runs on a device: compiled on a GPU, as plain operations on a CPU."""
    return compiled() if device.type == "cuda" else flex_attention


@cache
def compiled() -> Callable[..., Any]:
    """FlexAttention as kernels, compiled when they are first needed."""
    return torch.compile(
        flex_attention, dynamic=True, fullgraph=True, recompile_limit=RECOMPILE_LIMIT
    )
