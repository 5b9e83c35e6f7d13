"""Decode steps as graphs: captured once for each bucket of counts, and replayed.

A step of one row a generation is hundreds of small kernels, and a GPU waits for each to be called.
A graph is one call. It computes on the same memory every time, so everything that differs from step
to step is copied there first: hidden states, rotary angles, slots and tables of blocks.
"""

from collections.abc import Callable, Sequence

import torch

from node_runner.engine.attention.kv_cache import KVBlockPool
from node_runner.engine.attention.paged import BlockTables, PagedGroup
from node_runner.engine.attention.ragged_batch import RaggedBatch
from node_runner.engine.model.fused_layers import FusedLayers

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Generations of one graph. Fewer are filled up with rows that belong to none."""

Compute = Callable[[], torch.Tensor]
Capture = Callable[[Compute], Compute]
"""Makes of a computation one that does the same again on the same memory, its output included."""


class DecodeGraphs:
    """Decode steps of a pool's generations.

    Takes one of the pool's blocks, into which rows of no generation write. The graphs' tables take
    1 kB for each block of the pool (:class:`BlockTables`).

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
        spare = int(scratch.slots[0])
        try:
            # The largest first: what it needs serves the others, too.
            self._graphs = {
                count: _Graph(layers, pool, capture, count, spare) for count in reversed(BUCKETS)
            }
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the pool its block back; these graphs are not used again."""
        self._pool.free(self._scratch)

    def run(self, hidden: torch.Tensor, pack: RaggedBatch) -> torch.Tensor | None:
        """What the layers make of a pack, ``[rows, hidden]`` to the same shape; none if it is not
        a decode step of the pool, or one of too many generations."""
        count = len(pack.segments)
        if pack.pool is not self._pool or pack.rows != count or count > BUCKETS[-1]:
            return None
        bucket = next(bucket for bucket in BUCKETS if bucket >= count)
        return self._graphs[bucket].run(hidden, *self._layers.angles(pack), pack)


class _Graph:
    """Also the :class:`Places` of the rows that it computes."""

    def __init__(
        self, layers: FusedLayers, pool: KVBlockPool, capture: Capture, count: int, spare: int
    ) -> None:
        self.pool = pool
        self._tables = BlockTables(count, pool)
        self.groups: Sequence[PagedGroup] = [PagedGroup(self._tables, each=1, static=True)]
        self.slots = torch.full((count,), spare, device=pool.shape.device)
        self._spare = spare
        make = {"dtype": pool.shape.dtype, "device": pool.shape.device}
        self._hidden = torch.zeros(count, layers.hidden_size, **make)
        self._cos = torch.zeros(count, 1, layers.head_dim, **make)
        self._sin = torch.zeros_like(self._cos)
        self._replay = capture(lambda: layers.run(self._hidden, self._cos, self._sin, self))

    def run(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pack: RaggedBatch
    ) -> torch.Tensor:
        rows = len(hidden)
        self._hidden[rows:].zero_()
        self._hidden[:rows].copy_(hidden)
        self._cos[:rows].copy_(cos)
        self._sin[:rows].copy_(sin)
        self.slots[rows:].fill_(self._spare)
        self.slots[:rows].copy_(pack.slots)
        self._tables.fill(pack.segments)
        return self._replay()[:rows].clone()  # the next replay overwrites it
