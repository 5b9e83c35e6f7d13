"""What the spans that are there carry together, and where that is least.

Boundaries between layers are the vertices, spans the edges, as wide as their nodes are quick. What
a swarm makes in steps a second is the largest flow from the first layer to the last (Dinic's
algorithm). For pipelines that share no cut that is the sum of their slowest stages; where spans of
several nodes meet, routes go from any to any, and it is more.
"""

from collections import defaultdict, deque
from collections.abc import Mapping

from market.placement.solver.types import Candidate, ModelShape, Span

DUST = 1e-9
"""Share of the widest span below which what is left of one counts as nothing."""


def throughput(
    nodes: Mapping[str, Candidate], spans: Mapping[str, Span], model: ModelShape
) -> float:
    """Steps a second of nodes that serve these spans. Those that are not in ``nodes``, or do not
    hold their span, or not the edge where they ought to, serve nothing."""
    return Flow(nodes, spans, model).steps


class Flow:
    """The largest flow, and where it is held up. ``steps``: a second, of all together."""

    def __init__(
        self, nodes: Mapping[str, Candidate], spans: Mapping[str, Span], model: ModelShape
    ) -> None:
        self._end = model.layers
        self._rates = {
            node_id: nodes[node_id].rate(span, model)
            for node_id, span in spans.items()
            if node_id in nodes
        }
        self._spans = spans
        self._left: defaultdict[int, dict[int, float]] = defaultdict(dict)
        for node_id, rate in self._rates.items():
            start, end = spans[node_id]
            if rate > 0:
                self._left[start][end] = self._left[start].get(end, 0.0) + rate
                self._left[end].setdefault(start, 0.0)
        self._dust = DUST * max(self._rates.values(), default=0.0)
        self.steps = 0.0
        while (levels := self._levels()) is not None:
            untried = {cut: list(after) for cut, after in self._left.items()}
            while pushed := self._push(0, float("inf"), levels, untried):
                self.steps += pushed

    def slack(self, node_id: str) -> float:
        """Steps a second that nodes of its span could still take: if that is as much as its own
        rate, nobody misses it."""
        start, end = self._spans[node_id]
        return self._left[start].get(end, 0.0)

    def carried(self, node_id: str) -> float:
        """Steps a second that all nodes of its span carry together."""
        start, end = self._spans[node_id]
        return self._left[end].get(start, 0.0)

    def rate(self, node_id: str) -> float:
        """Steps a second that it could serve through its span."""
        return self._rates.get(node_id, 0.0)

    def weakest(self) -> tuple[list[int], list[int]]:
        """Cuts that more steps could reach, and cuts from which more could reach the end: a node
        from one of the former to one of the latter raises the flow, and no other does."""
        return sorted(self._reached(0, forward=True)), sorted(
            self._reached(self._end, forward=False)
        )

    def _reached(self, cut: int, *, forward: bool) -> set[int]:
        found, waiting = {cut}, [cut]
        while waiting:
            here = waiting.pop()
            for there in self._left[here]:
                left = self._left[here][there] if forward else self._left[there][here]
                if there not in found and left > self._dust:
                    found.add(there)
                    waiting.append(there)
        return found

    def _levels(self) -> dict[int, int] | None:
        """How many spans away from the first layer each cut is; none if the last is cut off."""
        levels, waiting = {0: 0}, deque([0])
        while waiting:
            here = waiting.popleft()
            for there, left in self._left[here].items():
                if there not in levels and left > self._dust:
                    levels[there] = levels[here] + 1
                    waiting.append(there)
        return levels if self._end in levels else None

    def _push(
        self, here: int, steps: float, levels: Mapping[int, int], untried: Mapping[int, list[int]]
    ) -> float:
        """Send up to so many steps from a cut to the end, along one path; how many went."""
        if here == self._end:
            return steps
        ahead = untried[here]
        while ahead:
            there = ahead[-1]
            left = self._left[here][there]
            if left > self._dust and levels.get(there) == levels[here] + 1:
                sent = self._push(there, min(steps, left), levels, untried)
                if sent:
                    self._left[here][there] -= sent
                    self._left[there][here] += sent
                    return sent
            ahead.pop()
        return 0.0
