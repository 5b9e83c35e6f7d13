"""KV caches in blocks: a budget in bytes, handed out by reservation, shared where prefixes are."""

import heapq
import math
from dataclasses import dataclass

import numpy as np
import torch

from node_runner.engine.device.tensors import on_device

BLOCK = 16
"""Positions of a block that is gathered."""

PAGED_BLOCK = 128
"""Positions of a block that attention reads where it lies: a block of FlexAttention's masks."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one position of one layer takes: ``heads`` keys of ``key_dim``, values of
    ``value_dim``. ``paged``: attention reads blocks where they lie, and does not gather them."""

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    paged: bool = False

    @property
    def block(self) -> int:
        """Positions of a block."""
        return PAGED_BLOCK if self.paged else BLOCK

    @property
    def bytes_per_position(self) -> int:
        """Of all layers, keys and values."""
        return self.layers * self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize

    @property
    def bytes_per_block(self) -> int:
        return self.block * self.bytes_per_position


class KVCache:
    """One generation's blocks. ``length`` positions are valid.

    Position is the truth: writing at an earlier position forgets what came after it.
    """

    def __init__(self, pool: "KVBlockPool", blocks: list[int]) -> None:
        self.pool = pool
        self.blocks = blocks
        self.table = on_device(blocks, pool.shape.device)
        size = pool.shape.block
        within = torch.arange(size, device=pool.shape.device)
        self.slots = (self.table[:, None] * size + within).flatten()
        """Where each position lies in the pool's tensors."""
        self.start = blocks[0] * size if blocks == list(range(blocks[0], blocks[-1] + 1)) else None
        """Where position 0 lies, if all others follow it; none if the blocks are scattered."""
        self.length = 0

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return len(self.blocks) * self.pool.shape.block


class KVBlockPool:
    """All blocks of a span. By layer: ``keys`` and ``values``,
    ``[blocks * block, heads, key_dim or value_dim]``."""

    def __init__(self, shape: KVShape, budget_bytes: int) -> None:
        self.shape = shape
        self.blocks = budget_bytes // shape.bytes_per_block
        positions = self.blocks * shape.block
        self.keys = [
            _zeros((positions, shape.heads, shape.key_dim), shape) for _ in range(shape.layers)
        ]
        self.values = [
            _zeros((positions, shape.heads, shape.value_dim), shape) for _ in range(shape.layers)
        ]
        self._free = list(range(self.blocks))  # a heap: low blocks first keeps them in a row

    @property
    def budget_bytes(self) -> int:
        return self.blocks * self.shape.bytes_per_block

    @property
    def used_bytes(self) -> int:
        return (self.blocks - len(self._free)) * self.shape.bytes_per_block

    def fits(self, capacity: int, *, beside: int = 0) -> bool:
        """Whether there are blocks for ``capacity`` positions, with so many that may be freed."""
        return self._blocks_for(capacity) <= len(self._free) + beside

    def reserve(self, capacity: int) -> KVCache | None:
        """A cache for ``capacity`` positions, or none if the budget does not hold it."""
        if not self.fits(capacity):
            return None
        blocks = [heapq.heappop(self._free) for _ in range(self._blocks_for(capacity))]
        return KVCache(self, blocks)

    def _blocks_for(self, capacity: int) -> int:
        return -(-capacity // self.shape.block)

    def free(self, cache: KVCache) -> None:
        for block in cache.blocks:
            heapq.heappush(self._free, block)

    def scrub(self, cache: KVCache) -> None:
        """Overwrite what is not finite, before others are given the blocks."""
        for tensor in (*self.keys, *self.values):
            tensor[cache.slots] = 0
        cache.length = 0


def _zeros(size: tuple[int, ...], shape: KVShape) -> torch.Tensor:
    """Zeros, since what a mask hides has to be finite all the same. On a CPU they take memory only
    where something is written: the system maps numpy's pages when they are first touched, while
    `torch.zeros` writes them all."""
    if shape.device.type != "cpu":
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
    raw = np.zeros(math.prod(size) * shape.dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(shape.dtype).view(size)
