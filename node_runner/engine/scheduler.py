"""Which waiting work the next forward takes."""

from collections import Counter, deque
from collections.abc import Collection

from node_runner.engine.attention.interface import FEW_ROWS
from node_runner.engine.generation import Generation, WorkItem

PREFILL_CHUNK = 128
"""Positions of one prompt in one forward: small enough that the spans work on different chunks at
once, and that decoding generations do not wait long."""


MIN_BATCH = 4
"""Steps that a forward takes if they wait, however many stages there are: up to so many rows cost
hardly more than one, since reading the weights is most of the work."""


class Scheduler:
    """Decoding first, then prompts: a forward takes the steps of one micro-batch, and at most one
    chunk's worth of prompts beside them, each generation's in turn.

    A micro-batch is an equal share of all generations for each stage of the route. If a forward
    took every step that waits, all generations would soon travel in one batch, from node to node,
    and all nodes but one would stand idle.
    """

    def __init__(self) -> None:
        self._steps: deque[WorkItem] = deque()
        self._chunks: deque[WorkItem] = deque()
        self._waiting: Counter[Generation] = Counter()

    def __bool__(self) -> bool:
        return bool(self._steps or self._chunks)

    def waits(self, generation: Generation) -> bool:
        """Whether any of its work does."""
        return self.waiting_rows(generation) > 0

    def waiting_rows(self, generation: Generation) -> int:
        return self._waiting[generation]

    def add(self, work: WorkItem) -> None:
        """Work of one generation is taken in the order in which it was added."""
        quick = work.rows <= FEW_ROWS and work.wanted > 0
        if quick and not self.waits(work.generation):
            self._steps.append(work)
        else:
            self._chunks.append(work)
        self._waiting[work.generation] += work.rows

    def take(self, share: int) -> list[WorkItem]:
        """The next forward's work, at most one piece of each generation: ``share`` steps or a few,
        and a chunk's worth of prompts. Work of generations that are over is dropped."""
        pack = self._pick(self._steps, works=max(share, MIN_BATCH))
        return pack + self._pick(self._chunks, rows=PREFILL_CHUNK, beside=pack)

    def _pick(
        self,
        queue: deque[WorkItem],
        *,
        works: int | None = None,
        rows: int | None = None,
        beside: Collection[WorkItem] = (),
    ) -> list[WorkItem]:
        """From the queue's front: up to so many works, or rows (one work is never too long)."""
        picked: list[WorkItem] = []
        later: list[WorkItem] = []
        taken = {work.generation for work in beside}
        size = 0
        while queue and (works is None or len(picked) < works):
            work = queue.popleft()
            if work.generation.over:
                self._forget(work)
            elif work.generation in taken:
                later.append(work)
            elif rows is not None and picked and size + work.rows > rows:
                later.append(work)
                break
            else:
                self._forget(work)
                picked.append(work)
                taken.add(work.generation)
                size += work.rows
        queue.extendleft(reversed(later))
        return picked

    def _forget(self, work: WorkItem) -> None:
        self._waiting[work.generation] -= work.rows
        if not self._waiting[work.generation]:
            del self._waiting[work.generation]
