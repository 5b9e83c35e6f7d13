"""The span of one more node, while no other span changes: it widens the cluster's bottleneck."""

from collections.abc import Iterable, Mapping
from itertools import product

from market.placement.solver.max_flow import Flow
from market.placement.solver.types import Candidate, ModelShape, Span

MAX_SPANS = 16
"""Spans that are evaluated for a node."""


def join(
    node: Candidate,
    nodes: Mapping[str, Candidate],
    spans: Mapping[str, Span],
    model: ModelShape,
) -> Span | None:
    """The span with which a node raises the throughput most; none if it cannot raise it.

    While there is no throughput, as in a new cluster: layers that no node serves, the first ones
    for a node that can hold the edge, else the last ones.

    Args:
        node: The node that joins.
        nodes: The nodes that are there, by id.
        spans: What each of them serves, by id.
    """
    others = {node_id: span for node_id, span in spans.items() if node_id != node.node_id}
    nodes = {**nodes, node.node_id: node}
    flow = Flow(nodes, others, model)
    best, most = None, flow.throughput
    for span in augmenting_spans(node, flow, model):
        if best is not None and flow.throughput + node.rate(span, model) <= most:
            break  # the spans come by rate
        throughput = Flow(nodes, {**others, node.node_id: span}, model).throughput
        if throughput > most:
            best, most = span, throughput
    if best is None and flow.throughput == 0:
        served = {layer for other in others if other in nodes for layer in range(*others[other])}
        return _unserved(node, served, model)
    return best


def augmenting_spans(node: Candidate, flow: Flow, model: ModelShape) -> list[Span]:
    """Spans with which a node would widen the bottleneck of a flow; those that it serves quickest
    first, and no more than :data:`MAX_SPANS`."""
    before, after = flow.bottleneck()
    spans = [span for span in product(before, after) if span[0] < span[1] and node.holds(span)]
    spans.sort(key=lambda span: (-node.rate(span, model), span))
    return spans[:MAX_SPANS]


def _unserved(node: Candidate, served: Iterable[int], model: ModelShape) -> Span | None:
    missing = sorted(set(range(model.layers)) - set(served))
    if not missing:
        return None
    first = missing[0]
    if first == 0 and node.edge_capacity:
        end = _run_end(missing, 0)
        return 0, min(end, node.edge_capacity)
    end = missing[-1] + 1
    start = end - 1
    while start - 1 in missing and start > 1 and end - start < node.capacity:
        start -= 1
    return (start, end) if start and node.capacity else None


def _run_end(missing: list[int], start: int) -> int:
    end = start
    for layer in missing:
        if layer != end:
            break
        end += 1
    return end
