"""The generations that an engine holds, and what each gives back when it is closed."""

import time
from collections.abc import Iterator, Mapping

from node_runner.engine.attention.prefix_cache import PrefixCache
from node_runner.engine.edge import Edge
from node_runner.engine.generation import Generation


class GenerationTable(Mapping[str, Generation]):
    """Generations by request id, each at its newest epoch.

    Args:
        prefix_cache: Where the KV blocks of closed generations go.
        edge: What frees the draft model's KV of closed generations.
        limit: Generations that the node holds at once.
    """

    def __init__(self, prefix_cache: PrefixCache, edge: Edge, *, limit: int) -> None:
        self._prefix_cache = prefix_cache
        self._edge = edge
        self._limit = limit
        self._by_id: dict[str, Generation] = {}
        self.held_by_other_engines = 0
        """Generations that the node's other engines hold; they count towards the limit."""

    def __getitem__(self, request_id: str) -> Generation:
        return self._by_id[request_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def full(self) -> bool:
        """Whether the node holds as many generations as it may."""
        return len(self) + self.held_by_other_engines >= self._limit

    def at_epoch(self, request_id: str, epoch: int) -> Generation | None:
        """The generation, if it runs at just this epoch."""
        generation = self._by_id.get(request_id)
        if generation is None or generation.epoch != epoch or generation.halted:
            return None
        return generation

    def running(self) -> list[Generation]:
        """Generations that are not halted at their newest epoch."""
        return [generation for generation in self._by_id.values() if not generation.halted]

    def expired(self) -> list[Generation]:
        """Generations that should have been closed by now."""
        now = time.monotonic()
        return [generation for generation in self._by_id.values() if generation.expires_at < now]

    def add(self, generation: Generation) -> None:
        """Hold a generation, in place of its older epoch if there is one."""
        self._by_id[generation.request_id] = generation

    def close(self, generation: Generation) -> None:
        """Drop a generation and free its KV; nothing if a newer epoch has taken its place, or it
        is closed already."""
        generation.halted = True
        if self._by_id.get(generation.request_id) is generation:
            del self._by_id[generation.request_id]
            self._prefix_cache.release(generation.cache, generation.prefix)
            self._edge.close(generation)
