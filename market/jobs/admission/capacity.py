"""How much of a model its nodes can serve, and how long a new job waits for its start by that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from market.nodes.node import Node


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a model's nodes can serve.

    ``positions``: in their KV caches at once; infinite if the nodes of some layer do not say.
    ``jobs``: at once, without one waiting for the others. ``rate``: positions a second, as
    measured; none if nothing was.
    """

    positions: float
    jobs: int
    rate: float | None

    def start_wait(self, jobs: int, positions: int, new: int) -> float:
        """Seconds that a new job is expected to wait for its start: until what there is no room for
        is computed. Infinite if it has to wait and no rate was measured.

        Args:
            jobs: Jobs that are served before it.
            positions: Positions of all those.
            new: Positions of the new job.
        """
        excess = positions + new - self.positions
        if jobs >= self.jobs:
            excess = max(excess, positions * (jobs + 1 - self.jobs) / jobs)
        if excess <= 0:
            return 0.0
        return excess / self.rate if self.rate else math.inf


def capacity_of(
    nodes: Sequence[Node], *, layers: int, jobs_per_route: int, rate: float | None
) -> Capacity:
    """What nodes can serve: as much as the layer that can serve least.

    Args:
        nodes: The model's nodes, those that a route may use.
        layers: Layers of the model.
        jobs_per_route: Jobs that a node computes at once, if it does not want fewer.
        rate: See :class:`Capacity`.
    """
    positions = [node.kv_positions or math.inf for node in nodes]
    jobs = [min(node.max_sessions or jobs_per_route, jobs_per_route) for node in nodes]
    return Capacity(
        positions=_of_least_layer(nodes, positions, layers),
        jobs=max(1, int(_of_least_layer(nodes, jobs, layers))),
        rate=rate,
    )


def _of_least_layer(nodes: Sequence[Node], amounts: Sequence[float], layers: int) -> float:
    """The sum of the amounts of all nodes that serve a layer, of the layer where it is least."""
    unlimited = [0] * (layers + 1)
    limited = [0.0] * (layers + 1)
    for node, amount in zip(nodes, amounts, strict=True):
        start, end = node.start_layer, node.end_layer
        if math.isinf(amount):
            unlimited[start] += 1
            unlimited[end] -= 1
        else:
            limited[start] += amount
            limited[end] -= amount
    sums = zip(accumulate(unlimited[:layers]), accumulate(limited[:layers]), strict=True)
    return min(math.inf if infinite else finite for infinite, finite in sums)
