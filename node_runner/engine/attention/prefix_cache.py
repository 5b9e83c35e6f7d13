"""Caches of generations that have ended, for others whose prompts begin alike."""

from collections import OrderedDict
from collections.abc import Sequence

from mesh.prefix_hashes import EVERY
from node_runner.engine.attention.kv_cache import KVBlockPool, KVCache


class PrefixCache:
    """Hands a pool's blocks out, and keeps ended generations' blocks until others need them.

    A prefix is copied, not shared: that costs a hundredth of computing it, and every generation
    owns its blocks alone.
    """

    def __init__(self, pool: KVBlockPool) -> None:
        self._pool = pool
        self._kept: OrderedDict[bytes, KVCache] = OrderedDict()  # the longest unused first
        self._found: dict[bytes, tuple[bytes, int]] = {}
        self._kept_blocks = 0

    @property
    def kept_bytes(self) -> int:
        """What could be freed at once."""
        return self._kept_blocks * self._pool.shape.bytes_per_block

    def reserve(self, capacity: int, prefix: Sequence[bytes]) -> KVCache | None:
        """A cache for ``capacity`` positions, for which kept ones make room; none if there is
        not so much room. The longest prefix that is kept is in it already."""
        name = next((name for name in reversed(prefix) if name in self._found), None)
        if name is not None:
            self._kept.move_to_end(self._found[name][0])
        if not self._pool.fits(capacity, beside=self._kept_blocks):
            return None
        while (cache := self._pool.reserve(capacity)) is None and self._kept:
            self._drop(next(iter(self._kept)))
        if cache is not None and name in self._found:
            owner, length = self._found[name]
            kept = self._kept[owner]
            for tensor in (*self._pool.keys, *self._pool.values):
                tensor[cache.slots[:length]] = tensor[kept.slots[:length]]
            cache.length = length
        return cache

    def release(self, cache: KVCache, prefix: Sequence[bytes]) -> None:
        """A generation has ended. Its cache is kept under the names of its prompt's beginnings, if
        it has computed them and nobody keeps them yet."""
        names = prefix[: cache.length // EVERY]
        if not names or names[-1] in self._found:
            self._pool.free(cache)
            return
        owner = names[-1]
        self._kept[owner] = cache
        self._kept_blocks += len(cache.blocks)
        for number, name in enumerate(names, start=1):
            self._found[name] = (owner, number * EVERY)

    def _drop(self, owner: bytes) -> None:
        cache = self._kept.pop(owner)
        self._kept_blocks -= len(cache.blocks)
        self._pool.free(cache)
        gone = [name for name, (kept, _) in self._found.items() if kept == owner]
        for name in gone:
            del self._found[name]
