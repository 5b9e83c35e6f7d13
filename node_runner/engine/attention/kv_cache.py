"""KV caches in blocks of one pool: a budget in bytes, reserved before a generation begins."""

import heapq
import math
from dataclasses import dataclass

import numpy as np
import torch

from node_runner.engine.device.tensors import on_device

BLOCK_SIZE = 16
"""Positions of a block in a pool whose blocks are gathered."""

PAGED_BLOCK_SIZE = 128
"""Positions of a block in a paged pool, whose blocks attention reads in place: those of a block of
FlexAttention's masks."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a position takes in a KV cache: in each of ``layers``, ``heads`` keys of ``key_dim`` and
    values of ``value_dim``. ``paged``: attention reads blocks in place, and does not gather
    them. ``batch_invariant``: what attention gives for a row is the same bits, whatever rows are
    computed with it."""

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    paged: bool = False
    batch_invariant: bool = False

    @property
    def block_size(self) -> int:
        """Positions of a block."""
        return PAGED_BLOCK_SIZE if self.paged else BLOCK_SIZE

    @property
    def bytes_per_position(self) -> int:
        """Bytes of the keys and values of all layers."""
        return self.layers * self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize

    @property
    def bytes_per_block(self) -> int:
        """Bytes of the keys and values of all layers."""
        return self.block_size * self.bytes_per_position


class KVCache:
    """One generation's blocks, of which the first ``length`` positions are valid.

    Writing at an earlier position makes all positions behind it invalid, so that a repeated step,
    rejected draft tokens and resuming are one rule.
    """

    def __init__(self, pool: "KVBlockPool", blocks: list[int]) -> None:
        self.pool = pool
        self.blocks = blocks
        self.block_table = on_device(blocks, pool.shape.device)
        size = pool.shape.block_size
        within = torch.arange(size, device=pool.shape.device)
        self.slots = (self.block_table[:, None] * size + within).flatten()
        """The index of each position in the pool's tensors, int64 ``[capacity]``."""
        contiguous = blocks == list(range(blocks[0], blocks[-1] + 1))
        self.contiguous_start = blocks[0] * size if contiguous else None
        """The index of position 0 in the pool's tensors, if all other positions follow it; none
        if the blocks are scattered."""
        self.length = 0

    @property
    def capacity(self) -> int:
        """Positions that the blocks hold."""
        return len(self.blocks) * self.pool.shape.block_size


class KVBlockPool:
    """All KV blocks of a span.

    ``keys`` and ``values`` have a tensor for each layer,
    ``[num_blocks * block_size, heads, key_dim or value_dim]``.

    Args:
        shape: What a position takes.
        budget_bytes: Bytes of all blocks at most; allocated at once.
    """

    def __init__(self, shape: KVShape, budget_bytes: int) -> None:
        self.shape = shape
        self.num_blocks = budget_bytes // shape.bytes_per_block
        positions = self.num_blocks * shape.block_size
        self.keys = [
            _zeros((positions, shape.heads, shape.key_dim), shape) for _ in range(shape.layers)
        ]
        self.values = [
            _zeros((positions, shape.heads, shape.value_dim), shape) for _ in range(shape.layers)
        ]
        self._free = list(range(self.num_blocks))  # a heap: low blocks first keeps them in a row

    @property
    def budget_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.num_blocks * self.shape.bytes_per_block

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that are reserved."""
        return (self.num_blocks - len(self._free)) * self.shape.bytes_per_block

    def fits(self, capacity: int, *, evictable: int = 0) -> bool:
        """Whether there are blocks for ``capacity`` positions, if ``evictable`` of those reserved
        are counted as free."""
        return self._blocks_for(capacity) <= len(self._free) + evictable

    def reserve(self, capacity: int) -> KVCache | None:
        """A cache for ``capacity`` positions, or none if the budget does not hold it."""
        if not self.fits(capacity):
            return None
        blocks = [heapq.heappop(self._free) for _ in range(self._blocks_for(capacity))]
        return KVCache(self, blocks)

    def _blocks_for(self, capacity: int) -> int:
        return -(-capacity // self.shape.block_size)

    def free(self, cache: KVCache) -> None:
        """Take a cache's blocks back; the cache is not used again."""
        for block in cache.blocks:
            heapq.heappush(self._free, block)

    def zero(self, cache: KVCache) -> None:
        """Overwrite a cache with zeros, before its blocks are reserved again: values that are not
        finite would spoil others through a mask, which multiplies by zero."""
        for tensor in (*self.keys, *self.values):
            tensor[cache.slots] = 0
        cache.length = 0


def _zeros(size: tuple[int, ...], shape: KVShape) -> torch.Tensor:
    """Zeros, since what a mask hides has to be finite all the same. On a CPU they take memory only
    where something is written: the system maps numpy's pages when they are first written, while
    `torch.zeros` writes them all."""
    if shape.device.type != "cpu":
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
    raw = np.zeros(math.prod(size) * shape.dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(shape.dtype).view(size)
