"""KV caches of ended generations, kept for others whose prompts have a prefix in common."""

from collections import OrderedDict
from collections.abc import Sequence

from mesh.prefix_hashes import BLOCK_TOKENS
from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache


class PrefixCache:
    """Reserves a pool's blocks, and keeps those of ended generations until others need them.

    The cache that was unused for longest is evicted first. A prefix is copied, not shared: that
    costs a hundredth of computing it, and every generation owns its blocks alone.
    """

    def __init__(self, pool: KVBlockPool) -> None:
        self._pool = pool
        # By the hash of the longest prefix that a cache holds; least recently used first.
        self._kept: OrderedDict[bytes, KVCache] = OrderedDict()
        # By the hash of each prefix: its key in `_kept`, and its positions.
        self._index: dict[bytes, tuple[bytes, int]] = {}
        self._kept_blocks = 0

    @property
    def evictable_bytes(self) -> int:
        """Bytes of kept blocks, which are freed when a reservation needs them."""
        return self._kept_blocks * self._pool.shape.bytes_per_block

    def evict_all(self) -> None:
        """Free all kept blocks."""
        while self._kept:
            self._evict(next(iter(self._kept)))

    def reserve(self, capacity: int, prefix: Sequence[bytes]) -> KVCache | None:
        """A cache for ``capacity`` positions, for which kept ones are evicted where needed.

        Args:
            capacity: Positions that the generation has at most.
            prefix: Hashes of its prompt's prefixes, ever longer (:mod:`mesh.prefix_hashes`).

        Returns:
            A cache that holds the longest of these prefixes that is kept, its ``length``
            saying how much that is; none if there are not enough blocks.
        """
        longest = next((known for known in reversed(prefix) if self._fits(known, capacity)), None)
        if longest is not None:
            self._kept.move_to_end(self._index[longest][0])
        if not self._pool.fits(capacity, evictable=self._kept_blocks):
            return None
        while (cache := self._pool.reserve(capacity)) is None and self._kept:
            self._evict(next(iter(self._kept)))
        if cache is not None and longest in self._index:
            owner, length = self._index[longest]
            kept = self._kept[owner]
            for tensor in (*self._pool.keys, *self._pool.values):
                tensor[cache.slots[:length]] = tensor[kept.slots[:length]]
            cache.length = length
        return cache

    def release(self, cache: KVCache, prefix: Sequence[bytes]) -> None:
        """Take back the cache of a generation that has ended.

        The cache is kept under the hashes of its prompt's prefixes, as far as they are computed,
        and freed if there are none or the longest is kept already.
        """
        hashes = prefix[: cache.length // BLOCK_TOKENS]
        if not hashes or hashes[-1] in self._index or hashes[-1] in self._kept:
            self._pool.free(cache)
            return
        owner = hashes[-1]
        self._kept[owner] = cache
        self._kept_blocks += len(cache.blocks)
        for number, prefix_hash in enumerate(hashes, start=1):
            self._index[prefix_hash] = (owner, number * BLOCK_TOKENS)

    def _fits(self, prefix_hash: bytes, capacity: int) -> bool:
        """Whether a prefix is kept, and fits into a cache for ``capacity`` positions."""
        return prefix_hash in self._index and self._index[prefix_hash][1] <= capacity

    def _evict(self, owner: bytes) -> None:
        cache = self._kept.pop(owner)
        self._kept_blocks -= len(cache.blocks)
        self._pool.free(cache)
        gone = [prefix_hash for prefix_hash, (kept, _) in self._index.items() if kept == owner]
        for prefix_hash in gone:
            del self._index[prefix_hash]
