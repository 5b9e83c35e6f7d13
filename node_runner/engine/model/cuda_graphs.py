"""Decode steps as CUDA graphs: captured once for each bucket of batch sizes, and replayed.

A step of one row a generation is hundreds of small kernels, and a GPU waits for each to be
launched. A graph is one launch. It computes on the same memory every time, so everything that
differs from step to step is copied there first: hidden states, rotary angles, slots and block
tables.
"""

from collections.abc import Callable, Sequence

import torch

from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.paged import BlockTables, PagedGroup
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.fused_layers import FusedLayers

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes, in generations, that have a graph. A smaller batch is padded with rows that belong
to no generation."""

Compute = Callable[[], torch.Tensor]
Capture = Callable[[Compute], Compute]
"""Makes a replay of a computation: one that repeats it on the memory of its inputs, and gives the
tensor that it gave."""


class DecodeGraphs:
    """Decode steps of a pool's generations.

    Reserves one of the pool's blocks, into which padding rows write. The graphs' block tables take
    1 kB for each block of the pool (:class:`BlockTables`).

    Args:
        layers: What to capture.
        pool: A paged pool.
        capture: How to capture a computation.

    Raises:
        ValueError: the pool is not a paged one, or has no block left.
    """

    def __init__(self, layers: FusedLayers, pool: KVBlockPool, capture: Capture) -> None:
        scratch = pool.reserve(1) if pool.shape.paged else None
        if scratch is None:
            raise ValueError("Graphs need a paged pool with a block to spare.")
        self._layers = layers
        self._pool = pool
        self._scratch = scratch
        padding_slot = int(scratch.slots[0])
        try:
            # The largest first: the memory that it allocates is enough for the others.
            self._graphs = {
                count: _Graph(layers, pool, capture, count, padding_slot)
                for count in reversed(BUCKETS)
            }
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the pool its block back; the graphs are not used again."""
        self._pool.free(self._scratch)

    def run(self, hidden: torch.Tensor, batch: RaggedBatch) -> torch.Tensor | None:
        """A batch's rows ``[rows, hidden]`` through the layers, to hidden states of that shape;
        none if there is no graph for the batch: it has more than one row of a generation, too many
        generations, or those of another pool."""
        count = len(batch.segments)
        if batch.pool is not self._pool or batch.rows != count or count > BUCKETS[-1]:
            return None
        bucket = next(bucket for bucket in BUCKETS if bucket >= count)
        return self._graphs[bucket].run(hidden, *self._layers.angles(batch), batch)


class _Graph:
    """The graph of one batch size; also the :class:`BatchLayout` of the rows that it computes."""

    def __init__(
        self, layers: FusedLayers, pool: KVBlockPool, capture: Capture, count: int, padding: int
    ) -> None:
        self.pool = pool
        self._tables = BlockTables(count, pool)
        self.groups: Sequence[PagedGroup] = [PagedGroup(self._tables, each=1, static=True)]
        self.slots = torch.full((count,), padding, device=pool.shape.device)
        self._padding = padding
        make = {"dtype": pool.shape.dtype, "device": pool.shape.device}
        self._hidden = torch.zeros(count, layers.hidden_size, **make)
        self._cos = torch.zeros(count, 1, layers.head_dim, **make)
        self._sin = torch.zeros_like(self._cos)
        self._replay = capture(lambda: layers.run(self._hidden, self._cos, self._sin, self))

    def run(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, batch: RaggedBatch
    ) -> torch.Tensor:
        rows = len(hidden)
        self._hidden[rows:].zero_()
        self._hidden[:rows].copy_(hidden)
        self._cos[:rows].copy_(cos)
        self._sin[:rows].copy_(sin)
        self.slots[rows:].fill_(self._padding)
        self.slots[:rows].copy_(batch.slots)
        self._tables.fill(batch.segments)
        return self._replay()[:rows].clone()  # the next replay overwrites it
