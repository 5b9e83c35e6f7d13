"""One move, if it pays.

A move is what changes together: one node takes another span; nodes that follow one another cut
their layers anew; or nodes that carry nothing are placed afresh. Everybody else serves on, and so
do those that move, while they load, if their memory holds both spans.

It has to raise the throughput by more than the policy's threshold, and within its horizon by more
steps than the loading costs. So each move multiplies the throughput: none is ever undone while
nothing changes, and there are few of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from market.placement.solver.max_flow import Flow
from market.placement.solver.move_proposals import MoveProposals
from market.placement.solver.types import Candidate, ModelShape, Span

ALIKE = 0.99
"""Moves that are worth so much of the best one are as good: the one with the fewest changes is
made."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a move pays. ``threshold``: share of the present throughput that it has to gain.
    ``horizon``: seconds within which it has to win back what loading costs."""

    threshold: float = 0.1
    horizon: float = 3600.0


@dataclass(frozen=True, slots=True)
class SpanChange:
    """A node's new span (none: it has nothing to serve) and the bytes that it has to load."""

    node_id: str
    old: Span | None
    new: Span | None
    load_bytes: int


@dataclass(frozen=True, slots=True)
class RebalancePlan:
    """Changes that take effect together. ``before``, ``meanwhile``, ``after``: steps a second of
    the swarm; ``seconds``: of loading."""

    changes: tuple[SpanChange, ...]
    before: float
    meanwhile: float
    after: float
    seconds: float

    def worth(self, horizon: float) -> float:
        """Steps that the swarm makes within so many seconds if it moves now."""
        loading = min(self.seconds, horizon)
        return self.meanwhile * loading + self.after * (horizon - loading)


def propose(
    nodes: Sequence[Candidate],
    spans: Mapping[str, Span],
    model: ModelShape,
    policy: Policy | None = None,
) -> RebalancePlan | None:
    """The move that pays most; none if none does.

    Args:
        nodes: Those that are alive, as measured now. One that is not in ``spans`` is idle; one
            that serves more than its capacity counts for nothing.
        spans: What they serve. Nodes that are gone may still be in it; they count for nothing.
    """
    policy = policy or Policy()
    swarm = _Swarm(nodes, spans, model)
    least = swarm.flow.steps * (1 + policy.threshold)
    moves = []
    for idea in MoveProposals(swarm.nodes, swarm.spans, model, swarm.flow):
        move = swarm.weigh(idea)
        if move.after > least and move.worth(policy.horizon) > least * policy.horizon:
            moves.append(move)
    most = max((move.worth(policy.horizon) for move in moves), default=0.0)
    return min(
        (move for move in moves if move.worth(policy.horizon) >= ALIKE * most),
        key=lambda move: (len(move.changes), -move.worth(policy.horizon)),
        default=None,
    )


class _Swarm:
    """Nodes that are alive and what they serve."""

    def __init__(
        self, nodes: Sequence[Candidate], spans: Mapping[str, Span], model: ModelShape
    ) -> None:
        self.nodes = {node.node_id: node for node in sorted(nodes, key=lambda n: n.node_id)}
        self.spans = {name: spans[name] for name in self.nodes if name in spans}
        self.model = model
        self.flow = Flow(self.nodes, self.spans, model)

    def weigh(self, changed: Mapping[str, Span | None]) -> RebalancePlan:
        """What a move would cost and bring."""
        changes = tuple(
            self._change(name, new)
            for name, new in sorted(changed.items())
            if new != self.spans.get(name)
        )
        after: dict[str, Span | None] = {**self.spans, **{c.node_id: c.new for c in changes}}
        away = {c.node_id for c in changes if not self._serves_while_loading(c)}
        staying = {name: span for name, span in self.spans.items() if name not in away}
        return RebalancePlan(
            changes=changes,
            before=self.flow.steps,
            meanwhile=self._steps(staying) if away else self.flow.steps,
            after=self._steps({name: span for name, span in after.items() if span}),
            seconds=max(
                (c.load_bytes / self.nodes[c.node_id].load_speed for c in changes), default=0.0
            ),
        )

    def _change(self, name: str, new: Span | None) -> SpanChange:
        old, node = self.spans.get(name), self.nodes[name]
        layers = _layers(new) - _layers(old)
        edge = 0 in layers  # who serves layer 0 holds the edge
        return SpanChange(name, old, new, len(layers) * node.layer_bytes + edge * node.edge_bytes)

    def _serves_while_loading(self, change: SpanChange) -> bool:
        """Whether its memory holds both spans, or it has nothing to load."""
        both = _layers(change.old) | _layers(change.new)
        node = self.nodes[change.node_id]
        return not change.load_bytes or len(both) <= (
            node.edge_capacity if 0 in both else node.capacity
        )

    def _steps(self, spans: Mapping[str, Span]) -> float:
        return Flow(self.nodes, spans, self.model).steps


def _layers(span: Span | None) -> set[int]:
    return set(range(*span)) if span else set()
