"""Which waiting positions the next forward pass takes."""

from collections import Counter, deque
from collections.abc import Collection

from node_runner.engine.attention.interface import MAX_GROUPED_ROWS
from node_runner.engine.generation import Generation, WorkItem

PREFILL_CHUNK = 128
"""Prefill positions in one forward pass: few enough that the spans work on different chunks of a
prompt at once, and that decode steps do not wait long."""

MIN_DECODE_BATCH = 4
"""Decode steps that a forward pass takes if they wait, however many stages the route has: up to
four rows cost hardly more than one, since reading the weights is most of the work."""


class Scheduler:
    """Decode first, then prefill: a forward pass takes the decode steps of one micro-batch, and
    beside them at most one chunk's worth of prompts, first come, first served.

    A micro-batch is an equal share of all generations for each stage of the route. If a forward
    pass took every decode step that waits, all generations would soon travel in one batch, from
    node to node, and all nodes but one would stand idle.
    """

    def __init__(self) -> None:
        self._decode: deque[WorkItem] = deque()
        self._prefill: deque[WorkItem] = deque()
        self._waiting_rows: Counter[Generation] = Counter()

    def __bool__(self) -> bool:
        """Whether any position waits."""
        return bool(self._decode or self._prefill)

    def is_waiting(self, generation: Generation) -> bool:
        """Whether any position of the generation waits."""
        return self.waiting_rows(generation) > 0

    def waiting_rows(self, generation: Generation) -> int:
        """How many positions of the generation wait."""
        return self._waiting_rows[generation]

    def add(self, item: WorkItem) -> None:
        """Queue an item. Items of one generation are scheduled in the order of their adding."""
        decode = item.rows <= MAX_GROUPED_ROWS and item.rows_to_sample > 0
        if decode and not self.is_waiting(item.generation):
            self._decode.append(item)
        else:
            self._prefill.append(item)
        self._waiting_rows[item.generation] += item.rows

    def schedule(self, running: Collection[Generation]) -> list[WorkItem]:
        """The next batch: at most one item of each generation. Items of generations that are halted
        are dropped.

        Args:
            running: All generations that are not halted, waiting or not.
        """
        stages = max((generation.stage_assignment.stages for generation in running), default=1)
        micro_batch = -(-len(running) // stages)
        batch = self._take(self._decode, max_items=max(micro_batch, MIN_DECODE_BATCH))
        return batch + self._take(self._prefill, max_rows=PREFILL_CHUNK, beside=batch)

    def _take(
        self,
        queue: deque[WorkItem],
        *,
        max_items: int | None = None,
        max_rows: int | None = None,
        beside: Collection[WorkItem] = (),
    ) -> list[WorkItem]:
        """Items from the queue's front, past generations that are in the batch already. The first
        item is taken even if it has more than ``max_rows``."""
        taken: list[WorkItem] = []
        later: list[WorkItem] = []
        generations = {item.generation for item in beside}
        rows = 0
        while queue and (max_items is None or len(taken) < max_items):
            item = queue.popleft()
            if item.generation.halted:
                self._dequeued(item)
            elif item.generation in generations:
                later.append(item)
            elif max_rows is not None and taken and rows + item.rows > max_rows:
                later.append(item)
                break
            else:
                self._dequeued(item)
                taken.append(item)
                generations.add(item.generation)
                rows += item.rows
        queue.extendleft(reversed(later))
        return taken

    def _dequeued(self, item: WorkItem) -> None:
        self._waiting_rows[item.generation] -= item.rows
        if not self._waiting_rows[item.generation]:
            del self._waiting_rows[item.generation]
