"""A node more, and nobody moves: it goes where the swarm is weakest."""

from collections.abc import Iterable, Mapping
from itertools import product

from market.placement.solver.max_flow import Flow
from market.placement.solver.types import Candidate, ModelShape, Span

TRIES = 16
"""Spans that are weighed for a node."""


def join(
    node: Candidate,
    nodes: Mapping[str, Candidate],
    spans: Mapping[str, Span],
    model: ModelShape,
) -> Span | None:
    """The span with which a node helps the others most, as they are; none if it cannot.

    The span that raises the throughput most. While there is no throughput to raise, as in a young
    swarm: layers that nobody serves, from the front for who can hold the edge, else from the back.

    Args:
        nodes: Those that are there, by id.
        spans: What they serve.
    """
    others = {node_id: span for node_id, span in spans.items() if node_id != node.node_id}
    nodes = {**nodes, node.node_id: node}
    flow = Flow(nodes, others, model)
    best, steps = None, flow.steps
    for span in bridges(node, flow, model):
        if best is not None and flow.steps + node.rate(span, model) <= steps:
            break  # bridges come by rate
        gained = Flow(nodes, {**others, node.node_id: span}, model).steps
        if gained > steps:
            best, steps = span, gained
    if best is None and flow.steps == 0:
        served = {layer for other in others if other in nodes for layer in range(*others[other])}
        return _unserved(node, served, model)
    return best


def bridges(node: Candidate, flow: Flow, model: ModelShape) -> list[Span]:
    """Spans with which a node would lead around what holds the flow up; the quickest first."""
    before, after = flow.weakest()
    spans = [span for span in product(before, after) if span[0] < span[1] and node.holds(span)]
    spans.sort(key=lambda span: (-node.rate(span, model), span))
    return spans[:TRIES]


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
