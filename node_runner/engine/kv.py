"""KV caches of generations, within a budget of bytes.

Admission is by reservation: a generation gets room for all positions it may ever need, or is
refused at once. So a node never runs out of memory in the middle of one.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one position costs: keys and values of every layer of the span."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_position(self) -> int:
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


class KVCache:
    """Keys and values of one generation, by layer: each ``[1, kv_heads, capacity, head_dim]``.

    ``length`` positions are valid. Position is the truth: writing at an earlier position
    forgets what came after it.
    """

    def __init__(self, shape: KVShape, capacity: int) -> None:
        size = (shape.layers, 1, shape.heads, capacity, shape.head_dim)
        self.keys = torch.empty(size, dtype=shape.dtype, device=shape.device).unbind()
        self.values = torch.empty(size, dtype=shape.dtype, device=shape.device).unbind()
        self.device = shape.device
        self.capacity = capacity
        self.length = 0

    def write(
        self, layer: int, position: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put ``[1, kv_heads, rows, head_dim]`` at a position; returns all up to their end."""
        rows = keys.shape[2]
        all_keys, all_values = self.keys[layer], self.values[layer]
        all_keys.narrow(2, position, rows).copy_(keys)
        all_values.narrow(2, position, rows).copy_(values)
        return all_keys.narrow(2, 0, position + rows), all_values.narrow(2, 0, position + rows)


class KVPool:
    """Hands out caches until the budget is spent."""

    def __init__(self, shape: KVShape, budget_bytes: int) -> None:
        self._shape = shape
        self.budget_bytes = budget_bytes
        self.used_bytes = 0

    def reserve(self, capacity: int) -> KVCache | None:
        """A cache for ``capacity`` positions, or none if the budget does not hold it."""
        size = capacity * self._shape.bytes_per_position
        if self.used_bytes + size > self.budget_bytes:
            return None
        self.used_bytes += size
        return KVCache(self._shape, capacity)

    def free(self, cache: KVCache) -> None:
        self.used_bytes -= cache.capacity * self._shape.bytes_per_position
