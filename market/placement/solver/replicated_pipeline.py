"""Many nodes in one pipeline: the same cuts for all, and as many replicas as a stage needs.

What a node has to spare in a pipeline of its own is lost; among replicas nothing is, since a stage
makes what all of its nodes make. It takes a crowd, so that stages come out alike.
"""

from collections.abc import Iterable, Sequence

from market.placement.solver.types import Candidate, ModelShape, Pipeline, Span, Stage
from market.placement.solver.water_filling import even_split, in_a_row

ALIKE = 0.99
"""Of pipelines that make so much of the best one, the shortest is taken: a step has fewer hops."""


def replicated_pipeline(
    nodes: Sequence[Candidate], model: ModelShape, lengths: Iterable[int]
) -> Pipeline | None:
    """The best pipeline with equal stages (the edge counted), of so many or so many; none if no
    node holds some stage. ``nodes`` in an order of their own, which decides between equal ones."""
    found = [pipeline for length in lengths if (pipeline := _shared(nodes, model, length))]
    most = max((pipeline.rate for pipeline in found), default=0.0)
    good = (pipeline for pipeline in found if pipeline.rate >= ALIKE * most)
    return min(good, key=lambda pipeline: len(pipeline.stages), default=None)


def _shared(nodes: Sequence[Candidate], model: ModelShape, length: int) -> Pipeline | None:
    """The quickest node first goes where the least is made of what it holds; those that may have
    the edge come last, and go there if nobody else can."""
    spans = _equal(model, length)
    members: list[list[str]] = [[] for _ in spans]
    rates = [0.0] * len(spans)
    order = sorted(nodes, key=lambda node: (node.holds(spans[0]), -node.speed))
    for node in order:
        fitting = [number for number, span in enumerate(spans) if node.holds(span)]
        if fitting:
            weakest = min(fitting, key=rates.__getitem__)
            members[weakest].append(node.node_id)
            rates[weakest] += node.rate(spans[weakest], model)
    if not all(rates):
        return None
    return Pipeline(
        tuple(
            Stage(tuple(ids), span, rate)
            for ids, span, rate in zip(members, spans, rates, strict=True)
        )
    )


def _equal(model: ModelShape, length: int) -> list[Span]:
    """The first stage is shorter, by the edge's work."""
    share = (model.layers + model.edge_work) / length
    first = min(max(1, round(share - model.edge_work)), model.layers - length + 1)
    if length == 1:
        return [(0, model.layers)]
    rest = even_split(model.layers - first, length - 1)
    return in_a_row([first, *(end - start for start, end in rest)])
