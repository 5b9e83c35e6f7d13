"""Changes of spans that are worth evaluating."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from market.placement.solver.join import augmenting_spans
from market.placement.solver.max_flow import Flow
from market.placement.solver.pipeline_grouping import place
from market.placement.solver.types import Candidate, ModelShape, Span
from market.placement.solver.water_filling import Filling, consecutive_spans, water_fill

MAX_PROPOSALS = 24
"""Proposals of each kind, the most promising ones: bounds the time in a large cluster."""

SPANS_PER_NODE = 2
"""Spans that are proposed for one node."""

MAX_NEIGHBOURS = 2
"""Nodes before and nodes behind a bottleneck that may divide their layers anew with it, unless all
nodes of its chain do."""

MAX_SPARES = 3
"""Nodes that carry nothing and may take part where layers are divided anew: one of them, or all
where a whole chain takes part."""

Proposal = dict[str, Span | None]
"""The new span of each node that changes, by id; none if the node is to have nothing to serve."""


class RebalanceProposals:
    """Iterates over proposals; few of them pay."""

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

    def __iter__(self) -> Iterator[Proposal]:
        yield from self._new_pipelines()
        yield from self._relocations()
        yield from self._repartitions()

    def _new_pipelines(self) -> Iterator[Proposal]:
        """Nodes that carry nothing make pipelines of their own."""
        spans = place(self._unused, self._model).spans
        if spans:
            yield dict(spans)

    def _relocations(self) -> Iterator[Proposal]:
        """A node without which little is lost where it is widens the bottleneck."""
        order = sorted(
            (name for name, node in self._nodes.items() if node.movable),
            key=lambda name: (self._loss_without(name), -self._nodes[name].speed, name),
        )
        for name in order[:MAX_PROPOSALS]:
            spans = augmenting_spans(self._nodes[name], self._flow, self._model)
            for span in spans[:SPANS_PER_NODE]:
                yield {name: span}

    def _loss_without(self, name: str) -> float:
        """Steps a second that the cluster would lose without a node, at most."""
        if name not in self._spans:
            return 0.0
        return max(0.0, self._flow.rate(name) - self._flow.slack(name))

    def _repartitions(self) -> Iterator[Proposal]:
        """Consecutive nodes divide their layers anew: around a bottleneck, or across layers that no
        node serves any more."""
        spares = sorted(self._unused, key=lambda node: (-node.speed, node.node_id))[:MAX_SPARES]
        chains = sorted(self._chains(), key=lambda chain: -chain.potential_gain(self._spans))
        found: list[tuple[float, list[Candidate], Span, Filling]] = []
        for chain in chains[:MAX_PROPOSALS]:
            for nodes, span in chain.windows(self._spans, spares):
                edge_work = None if span[0] else self._model.edge_work
                filling = water_fill(nodes, span[1] - span[0], edge_work)
                if filling is not None and filling.rate > chain.rate:
                    found.append((filling.rate - chain.rate, nodes, span, filling))
        found.sort(key=lambda candidate: (-candidate[0], len(candidate[1])))
        for _, nodes, span, filling in found[:MAX_PROPOSALS]:
            yield _filled(nodes, span, filling)

    def _chains(self) -> Iterator["_Chain"]:
        before, after = map(set, self._flow.bottleneck())
        ending_at, starting_at = self._neighbours()

        def chain(start: int, middle: list[Candidate], end: int, rate: float) -> _Chain:
            left = _followed(start, ending_at, self._spans, side=0)
            right = _followed(end, starting_at, self._spans, side=1)
            return _Chain(left[::-1], middle, right, (start, end), rate)

        for name, (start, end) in self._spans.items():
            if start in before and end in after and self._nodes[name].movable:
                yield chain(start, [self._nodes[name]], end, self._flow.rate(name))
        for start in sorted(before):
            end = min((cut for cut in after if cut > start), default=0)
            if end and not any(start < cut < end for cut in before):
                yield chain(start, [], end, 0.0)

    def _neighbours(self) -> tuple[dict[int, Candidate], dict[int, Candidate]]:
        """Of the movable nodes, by cut: the quickest whose span ends there, and the quickest whose
        span starts there."""
        ending_at: dict[int, Candidate] = {}
        starting_at: dict[int, Candidate] = {}
        movable = (name for name in self._spans if self._nodes[name].movable)
        for name in sorted(movable, key=self._flow.rate):
            start, end = self._spans[name]
            starting_at[start] = ending_at[end] = self._nodes[name]
        return ending_at, starting_at


def _followed(
    cut: int, neighbours: Mapping[int, Candidate], spans: Mapping[str, Span], *, side: int
) -> list[Candidate]:
    """Nodes that follow one another from a cut on, the nearest first. ``side``: 0 if towards the
    first layer, 1 if towards the last."""
    found: list[Candidate] = []
    while cut in neighbours:
        found.append(neighbours[cut])
        cut = spans[neighbours[cut].node_id][side]
    return found


def _filled(nodes: Sequence[Candidate], span: Span, filling: Filling) -> Proposal:
    """The nodes' spans by a filling, consecutive from the start of ``span``."""
    order = sorted(range(len(nodes)), key=lambda number: number != filling.edge_holder)
    spans = consecutive_spans([filling.layers[number] for number in order], span[0])
    return {
        nodes[number].node_id: new if new[0] < new[1] else None
        for number, new in zip(order, spans, strict=True)
    }


@dataclass(frozen=True, slots=True)
class _Chain:
    """Nodes that follow one another: ``left`` up to a span, ``middle`` on it (empty if no node
    serves it), ``right`` from it on. ``rate``: steps a second of the middle now."""

    left: Sequence[Candidate]
    middle: Sequence[Candidate]
    right: Sequence[Candidate]
    span: Span
    rate: float

    def potential_gain(self, spans: Mapping[str, Span]) -> float:
        """Steps a second more, if the chain's layers were divisible among all its nodes."""
        start, end = self._ends(self.left, self.right, spans)
        speed = sum(node.speed for node in (*self.left, *self.middle, *self.right))
        return speed / (end - start) - self.rate

    def windows(
        self, spans: Mapping[str, Span], spares: Sequence[Candidate]
    ) -> Iterator[tuple[list[Candidate], Span]]:
        """Parts of the chain around the middle, by themselves and with one spare node; and the
        whole chain, with all spare nodes."""
        members = [*self.left, *self.middle, *self.right]
        others = [spare for spare in spares if spare not in members]
        most_left, most_right = (min(MAX_NEIGHBOURS, len(side)) for side in (self.left, self.right))
        for before, behind in product(range(most_left + 1), range(most_right + 1)):
            left, right = self.left[len(self.left) - before :], self.right[:behind]
            span = self._ends(left, right, spans)
            if left or self.middle or right:
                yield [*left, *self.middle, *right], span
            for spare in others:
                yield [*left, *self.middle, spare, *right], span
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
