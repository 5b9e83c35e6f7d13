"""One rebalance, if it pays.

A rebalance is what changes together: one node takes another span; consecutive nodes divide their
layers anew; or nodes that carry nothing form new pipelines. All other nodes serve on, and so do
those that change, while they load, if their memory holds both spans.

A rebalance has to raise the throughput by more than the policy's threshold, and within its horizon
by more steps than the loading costs. So each rebalance multiplies the throughput: none is ever
undone while nothing else changes, and there are few of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from market.placement.solver.max_flow import Flow
from market.placement.solver.rebalance_proposals import Proposal, RebalanceProposals
from market.placement.solver.types import Candidate, ModelShape, Span

NEARLY_BEST = 0.99
"""Share of the best rebalance's steps from which on the one with the fewest changes is taken."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a rebalance pays. ``threshold``: share of the present throughput that it has to gain.
    ``horizon``: seconds within which it has to win back what loading costs."""

    threshold: float = 0.1
    horizon: float = 3600.0


@dataclass(frozen=True, slots=True)
class SpanChange:
    """A node's old and new span; none where it has nothing to serve. ``load_bytes``: what it has to
    load for the new one."""

    node_id: str
    old: Span | None
    new: Span | None
    load_bytes: int


@dataclass(frozen=True, slots=True)
class RebalancePlan:
    """Changes that take effect together. ``before``, ``meanwhile``, ``after``: steps a second of
    the cluster before, while nodes load, and then. ``load_seconds``: how long they load."""

    changes: tuple[SpanChange, ...]
    before: float
    meanwhile: float
    after: float
    load_seconds: float

    def steps_within(self, horizon: float) -> float:
        """Steps that the cluster makes within ``horizon`` seconds if the rebalance begins now."""
        loading = min(self.load_seconds, horizon)
        return self.meanwhile * loading + self.after * (horizon - loading)


def propose(
    nodes: Sequence[Candidate],
    spans: Mapping[str, Span],
    model: ModelShape,
    policy: Policy | None = None,
) -> RebalancePlan | None:
    """The rebalance that pays most; none if none does.

    Args:
        nodes: Live nodes, as measured now. A node that is not in ``spans`` is idle; a node that
            serves more than its capacity counts for nothing.
        spans: What nodes serve, by id. Nodes that are gone may still be in it; they count for
            nothing.
        model: The model whose layers they serve.
        policy: When a rebalance pays.
    """
    policy = policy or Policy()
    horizon = policy.horizon
    cluster = _Cluster(nodes, spans, model)
    least = cluster.flow.throughput * (1 + policy.threshold)
    plans = []
    for proposal in RebalanceProposals(cluster.nodes, cluster.spans, model, cluster.flow):
        plan = cluster.plan(proposal)
        if plan.after > least and plan.steps_within(horizon) > least * horizon:
            plans.append(plan)
    most = max((plan.steps_within(horizon) for plan in plans), default=0.0)
    return min(
        (plan for plan in plans if plan.steps_within(horizon) >= NEARLY_BEST * most),
        key=lambda plan: (len(plan.changes), -plan.steps_within(horizon)),
        default=None,
    )


class _Cluster:
    """Live nodes and what they serve."""

    def __init__(
        self, nodes: Sequence[Candidate], spans: Mapping[str, Span], model: ModelShape
    ) -> None:
        self.nodes = {node.node_id: node for node in sorted(nodes, key=lambda n: n.node_id)}
        self.spans = {name: spans[name] for name in self.nodes if name in spans}
        self.model = model
        self.flow = Flow(self.nodes, self.spans, model)

    def plan(self, proposal: Proposal) -> RebalancePlan:
        """What a proposal would cost and gain."""
        changes = tuple(
            self._change(name, new)
            for name, new in sorted(proposal.items())
            if new != self.spans.get(name)
        )
        after: dict[str, Span | None] = {**self.spans, **{c.node_id: c.new for c in changes}}
        away = {c.node_id for c in changes if not self._serves_while_loading(c)}
        staying = {name: span for name, span in self.spans.items() if name not in away}
        return RebalancePlan(
            changes=changes,
            before=self.flow.throughput,
            meanwhile=self._throughput(staying) if away else self.flow.throughput,
            after=self._throughput({name: span for name, span in after.items() if span}),
            load_seconds=max(
                (c.load_bytes / self.nodes[c.node_id].load_speed for c in changes), default=0.0
            ),
        )

    def _change(self, name: str, new: Span | None) -> SpanChange:
        old, node = self.spans.get(name), self.nodes[name]
        layers = _layers(new) - _layers(old)
        edge = 0 in layers  # a node that serves layer 0 holds the edge
        return SpanChange(name, old, new, len(layers) * node.layer_bytes + edge * node.edge_bytes)

    def _serves_while_loading(self, change: SpanChange) -> bool:
        """Whether the node's memory holds both spans, or it has nothing to load."""
        both = _layers(change.old) | _layers(change.new)
        node = self.nodes[change.node_id]
        return not change.load_bytes or len(both) <= (
            node.edge_capacity if 0 in both else node.capacity
        )

    def _throughput(self, spans: Mapping[str, Span]) -> float:
        return Flow(self.nodes, spans, self.model).throughput


def _layers(span: Span | None) -> set[int]:
    return set(range(*span)) if span else set()
