"""Moves that are worth weighing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from market.placement.solver.join import bridges
from market.placement.solver.max_flow import Flow
from market.placement.solver.pipeline_grouping import place
from market.placement.solver.types import Candidate, ModelShape, Span
from market.placement.solver.water_filling import Filling, in_a_row, water_fill

TRIES = 24
"""Ideas of each kind, the most promising ones: bounds the time in a large swarm."""

BRIDGES = 2
"""Spans that are weighed for one node."""

REACH = 2
"""Nodes to either side of one that holds the others up that may cut their layers anew with it, if
not all of the pipeline do."""

HELPERS = 3
"""Nodes that carry nothing that may come in where layers are cut anew: one, or all of them where a
whole pipeline is."""

Idea = dict[str, Span | None]
"""By node: its span; none if it is to have nothing to serve."""


class MoveProposals:
    """Iterates over moves, each by node."""

    def __init__(
        self,
        nodes: Mapping[str, Candidate],
        spans: Mapping[str, Span],
        model: ModelShape,
        flow: Flow,
    ) -> None:
        self._nodes, self._spans, self._model, self._flow = nodes, spans, model, flow
        self._unused = [
            node
            for name, node in nodes.items()
            if node.movable and (name not in spans or not flow.carried(name))
        ]

    def __iter__(self) -> Iterator[Idea]:
        yield from self._placed_afresh()
        yield from self._taken_over()
        yield from self._cut_anew()

    def _placed_afresh(self) -> Iterator[Idea]:
        """Nodes that carry nothing make pipelines of their own."""
        fresh = place(self._unused, self._model).spans
        if fresh:
            yield dict(fresh)

    def _taken_over(self) -> Iterator[Idea]:
        """A node that is hardly missed where it is leads around what holds the others up."""
        order = sorted(
            (name for name, node in self._nodes.items() if node.movable),
            key=lambda name: (self._missed(name), -self._nodes[name].speed, name),
        )
        for name in order[:TRIES]:
            for span in bridges(self._nodes[name], self._flow, self._model)[:BRIDGES]:
                yield {name: span}

    def _missed(self, name: str) -> float:
        """Steps a second that the swarm may lose with it, at most."""
        if name not in self._spans:
            return 0.0
        return max(0.0, self._flow.rate(name) - self._flow.slack(name))

    def _cut_anew(self) -> Iterator[Idea]:
        """Nodes in a row share their layers otherwise: around one that holds the others up, or
        across a hole that one has left."""
        helpers = sorted(self._unused, key=lambda node: (-node.speed, node.node_id))[:HELPERS]
        lines = sorted(self._lines(), key=lambda line: -line.promise(self._spans))
        found: list[tuple[float, list[Candidate], Span, Filling]] = []
        for line in lines[:TRIES]:
            for nodes, span in line.windows(self._spans, helpers):
                edge_work = None if span[0] else self._model.edge_work
                filling = water_fill(nodes, span[1] - span[0], edge_work)
                if filling is not None and filling.rate > line.rate:
                    found.append((filling.rate - line.rate, nodes, span, filling))
        found.sort(key=lambda idea: (-idea[0], len(idea[1])))
        for _, nodes, span, filling in found[:TRIES]:
            yield _spread(nodes, span, filling)

    def _lines(self) -> Iterator["_Line"]:
        before, after = map(set, self._flow.weakest())
        leads, follows = self._neighbours()

        def line(start: int, middle: list[Candidate], end: int, rate: float) -> _Line:
            left = _chain(start, leads, self._spans, side=0)
            right = _chain(end, follows, self._spans, side=1)
            return _Line(left[::-1], middle, right, (start, end), rate)

        for name, (start, end) in self._spans.items():
            if start in before and end in after and self._nodes[name].movable:
                yield line(start, [self._nodes[name]], end, self._flow.rate(name))
        for start in sorted(before):
            end = min((cut for cut in after if cut > start), default=0)
            if end and not any(start < cut < end for cut in before):
                yield line(start, [], end, 0.0)

    def _neighbours(self) -> tuple[dict[int, Candidate], dict[int, Candidate]]:
        """Of those that may move, the quickest that ends at a cut, and the quickest that starts
        there."""
        leads: dict[int, Candidate] = {}
        follows: dict[int, Candidate] = {}
        movable = (name for name in self._spans if self._nodes[name].movable)
        for name in sorted(movable, key=self._flow.rate):
            start, end = self._spans[name]
            follows[start] = leads[end] = self._nodes[name]
        return leads, follows


def _chain(
    cut: int, neighbours: Mapping[int, Candidate], spans: Mapping[str, Span], *, side: int
) -> list[Candidate]:
    """Nodes that follow one another from a cut on, the nearest first. ``side``: which end of a
    node's span is the far one."""
    chain: list[Candidate] = []
    while cut in neighbours:
        chain.append(neighbours[cut])
        cut = spans[neighbours[cut].node_id][side]
    return chain


def _spread(nodes: Sequence[Candidate], span: Span, filling: Filling) -> Idea:
    order = sorted(range(len(nodes)), key=lambda number: number != filling.holder)
    spans = in_a_row([filling.layers[number] for number in order], span[0])
    return {
        nodes[number].node_id: new if new[0] < new[1] else None
        for number, new in zip(order, spans, strict=True)
    }


@dataclass(frozen=True, slots=True)
class _Line:
    """Nodes in a row: those that lead to a span, its own (none in a hole), and those that follow.
    ``rate``: steps a second that pass there now."""

    left: Sequence[Candidate]
    middle: Sequence[Candidate]
    right: Sequence[Candidate]
    span: Span
    rate: float

    def promise(self, spans: Mapping[str, Span]) -> float:
        """Steps a second more, if its layers could be spread evenly over all of it."""
        start, end = self._ends(self.left, self.right, spans)
        speed = sum(node.speed for node in (*self.left, *self.middle, *self.right))
        return speed / (end - start) - self.rate

    def windows(
        self, spans: Mapping[str, Span], helpers: Sequence[Candidate]
    ) -> Iterator[tuple[list[Candidate], Span]]:
        """Its parts around the middle, by themselves and with one node more; and all of it, with
        all of these."""
        near = [*self.left, *self.middle, *self.right]
        others = [helper for helper in helpers if helper not in near]
        reach = (min(REACH, len(self.left)), min(REACH, len(self.right)))
        for before, behind in product(range(reach[0] + 1), range(reach[1] + 1)):
            left, right = self.left[len(self.left) - before :], self.right[:behind]
            span = self._ends(left, right, spans)
            if left or self.middle or right:
                yield [*left, *self.middle, *right], span
            for helper in others:
                yield [*left, *self.middle, helper, *right], span
        yield (
            [*self.left, *self.middle, *others, *self.right],
            self._ends(self.left, self.right, spans),
        )

    def _ends(
        self, left: Sequence[Candidate], right: Sequence[Candidate], spans: Mapping[str, Span]
    ) -> Span:
        return (
            spans[left[0].node_id][0] if left else self.span[0],
            spans[right[-1].node_id][1] if right else self.span[1],
        )
