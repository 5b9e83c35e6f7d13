"""Many nodes in one pipeline: the same cuts for all, and as many replicas as a stage needs.

A quick node waits for the slower ones of a pipeline of single nodes; among replicas it does not,
since a stage's rate is the sum of its nodes' rates. Stages only come out equally quick if there are
many nodes.
"""

from collections.abc import Iterable, Sequence

from market.placement.solver.types import Candidate, ModelShape, Pipeline, Span, Stage
from market.placement.solver.water_filling import consecutive_spans, even_split

NEARLY_BEST = 0.99
"""Share of the best pipeline's rate from which on the shortest pipeline is taken: a step has fewer
hops."""


def replicated_pipeline(
    nodes: Sequence[Candidate], model: ModelShape, lengths: Iterable[int]
) -> Pipeline | None:
    """The best pipeline with stages of equal work; none if some stage fits no node.

    Args:
        nodes: In an order that decides between equal nodes.
        lengths: Numbers of stages to try.
    """
    found = [pipeline for length in lengths if (pipeline := _of_length(nodes, model, length))]
    most = max((pipeline.rate for pipeline in found), default=0.0)
    good = (pipeline for pipeline in found if pipeline.rate >= NEARLY_BEST * most)
    return min(good, key=lambda pipeline: len(pipeline.stages), default=None)


def _of_length(nodes: Sequence[Candidate], model: ModelShape, length: int) -> Pipeline | None:
    """Each node, the quickest first, becomes a replica of the slowest stage that it holds. Nodes
    that hold the first stage come last, since no other node can serve it."""
    spans = _equal_stages(model, length)
    members: list[list[str]] = [[] for _ in spans]
    rates = [0.0] * len(spans)
    order = sorted(nodes, key=lambda node: (node.holds(spans[0]), -node.speed))
    for node in order:
        fitting = [number for number, span in enumerate(spans) if node.holds(span)]
        if fitting:
            slowest = min(fitting, key=rates.__getitem__)
            members[slowest].append(node.node_id)
            rates[slowest] += node.rate(spans[slowest], model)
    if not all(rates):
        return None
    return Pipeline(
        tuple(
            Stage(tuple(ids), span, rate)
            for ids, span, rate in zip(members, spans, rates, strict=True)
        )
    )


def _equal_stages(model: ModelShape, length: int) -> list[Span]:
    """Spans of ``length`` stages; the first is shorter, by the edge's work."""
    share = (model.layers + model.edge_work) / length
    first = min(max(1, round(share - model.edge_work)), model.layers - length + 1)
    if length == 1:
        return [(0, model.layers)]
    rest = even_split(model.layers - first, length - 1)
    return consecutive_spans([first, *(end - start for start, end in rest)])
