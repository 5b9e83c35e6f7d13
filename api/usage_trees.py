"""The usage trees of the batches that receipts are asked for."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from mesh.db import Sessions, Settlement
from mesh.errors import UsageUnproven
from mesh.usage import Usage, UsageTree
from mesh.usage_lines import lines_of

log = structlog.get_logger()

KEPT = 8
"""Trees in memory: about 20 MB for each of 10,000 generations. A user's newest generations are in
few batches."""


@dataclass(frozen=True, slots=True)
class BatchUsage:
    lines: list[Usage]
    tree: UsageTree

    def proven(self, request_id: bytes) -> list[tuple[Usage, list[bytes]]]:
        """A request's lines and their proofs."""
        return [
            (line, self.tree.proof(index))
            for index, line in enumerate(self.lines)
            if line.request_id == request_id
        ]


class UsageTrees:
    """Builds each tree once while it is kept: a large one takes seconds."""

    def __init__(self) -> None:
        self._built: OrderedDict[str, BatchUsage] = OrderedDict()
        self._building = asyncio.Lock()

    async def of(self, sessions: Sessions, batch: Settlement) -> BatchUsage:
        """The lines and the tree of a batch.

        Raises:
            UsageUnproven: they do not give the root that the contract was given.
        """
        async with self._building:
            usage = self._built.pop(batch.id, None) or await self._build(sessions, batch)
            self._built[batch.id] = usage
            while len(self._built) > KEPT:
                self._built.popitem(last=False)
        return usage

    async def _build(self, sessions: Sessions, batch: Settlement) -> BatchUsage:
        async with sessions() as db:
            lines = await lines_of(db, batch)
        # Hashing for seconds: not in the event loop.
        tree = await asyncio.to_thread(UsageTree, lines)
        if "0x" + tree.root.hex() != batch.usage_root:
            log.error("usage_unproven", batch=batch.id)
            raise UsageUnproven("The lines of this batch cannot be proven. It has been logged.")
        return BatchUsage(lines, tree)
