"""The throughput of the spans that nodes serve, and its bottleneck.

Cuts between layers are the vertices, spans the edges, with their nodes' rates as capacities. A
cluster's steps a second are the largest flow from the first cut to the last (Dinic's algorithm).
For pipelines that share no cut, that is the sum of their slowest stages; where spans of several
nodes meet at a cut, routes go from any of them to any, and the flow is larger.
"""

from collections import defaultdict, deque
from collections.abc import Mapping

from market.placement.solver.types import Candidate, ModelShape, Span

EPSILON = 1e-9
"""Share of the highest rate below which a residual capacity counts as zero."""


def throughput(
    nodes: Mapping[str, Candidate], spans: Mapping[str, Span], model: ModelShape
) -> float:
    """Steps a second of nodes that serve these spans. A node that is not in ``nodes``, or does not
    hold its span (with the edge, if that begins at layer 0), serves nothing."""
    return Flow(nodes, spans, model).throughput


class Flow:
    """The largest flow, and its bottleneck. ``throughput``: steps a second of all nodes."""

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
        self._residual: defaultdict[int, dict[int, float]] = defaultdict(dict)
        for node_id, rate in self._rates.items():
            start, end = spans[node_id]
            if rate > 0:
                self._residual[start][end] = self._residual[start].get(end, 0.0) + rate
                self._residual[end].setdefault(start, 0.0)
        self._epsilon = EPSILON * max(self._rates.values(), default=0.0)
        self.throughput = 0.0
        while (levels := self._levels()) is not None:
            untried = {cut: list(after) for cut, after in self._residual.items()}
            while pushed := self._push(0, float("inf"), levels, untried):
                self.throughput += pushed

    def slack(self, node_id: str) -> float:
        """Steps a second that the nodes of a node's span could still take. If that is as much as
        the node's own rate, the throughput is the same without the node."""
        start, end = self._spans[node_id]
        return self._residual[start].get(end, 0.0)

    def carried(self, node_id: str) -> float:
        """Steps a second that all nodes of a node's span carry together."""
        start, end = self._spans[node_id]
        return self._residual[end].get(start, 0.0)

    def rate(self, node_id: str) -> float:
        """Steps a second that a node could serve through its span."""
        return self._rates.get(node_id, 0.0)

    def bottleneck(self) -> tuple[list[int], list[int]]:
        """Cuts that more steps could reach, and cuts from which more steps could reach the last: a
        span from one of the former to one of the latter raises the flow, and no other does."""
        return sorted(self._reached(0, forward=True)), sorted(
            self._reached(self._end, forward=False)
        )

    def _reached(self, cut: int, *, forward: bool) -> set[int]:
        found, waiting = {cut}, [cut]
        while waiting:
            here = waiting.pop()
            for there in self._residual[here]:
                left = self._residual[here][there] if forward else self._residual[there][here]
                if there not in found and left > self._epsilon:
                    found.add(there)
                    waiting.append(there)
        return found

    def _levels(self) -> dict[int, int] | None:
        """How many spans each cut is away from the first; none if the last cannot be reached."""
        levels, waiting = {0: 0}, deque([0])
        while waiting:
            here = waiting.popleft()
            for there, left in self._residual[here].items():
                if there not in levels and left > self._epsilon:
                    levels[there] = levels[here] + 1
                    waiting.append(there)
        return levels if self._end in levels else None

    def _push(
        self, here: int, steps: float, levels: Mapping[int, int], untried: Mapping[int, list[int]]
    ) -> float:
        """Push up to ``steps`` a second from a cut to the last, along one path.

        Returns:
            Steps a second that were pushed; 0 if no path is left.
        """
        if here == self._end:
            return steps
        ahead = untried[here]
        while ahead:
            there = ahead[-1]
            left = self._residual[here][there]
            if left > self._epsilon and levels.get(there) == levels[here] + 1:
                pushed = self._push(there, min(steps, left), levels, untried)
                if pushed:
                    self._residual[here][there] -= pushed
                    self._residual[there][here] += pushed
                    return pushed
            ahead.pop()
        return 0.0
