"""A cluster: its nodes over pipelines, so that all pipelines together make the most steps a second.

If layers were divisible, any grouping of the same nodes would make as many steps: the sum of their
speeds over the model's work. Groupings differ by whole layers (a slow node's last layer makes the
whole pipeline wait) and by memory (a quick node that is full waits for the others). So nodes that
are alike are grouped: by speed, or by the step that a full node takes. Both are tried, with fewer
and with more pipelines; from the best of them nodes are exchanged as long as that helps. Of few
nodes all groupings are compared. Many nodes need no grouping: one pipeline whose stages have
replicas makes nearly all the steps that its nodes could make.
"""

from collections.abc import Sequence

from market.placement.solver.local_search import Groups, full_step, group_alike, quickest_first
from market.placement.solver.replicated_pipeline import replicated_pipeline
from market.placement.solver.types import Candidate, ModelShape, Pipeline, Placement, Stage
from market.placement.solver.water_filling import consecutive_spans, water_fill

EXHAUSTIVE = 8
"""Nodes up to which all groupings are compared: 3 to that power."""

SEARCH_BUDGET = 60_000
"""Nodes of all the pipelines that are evaluated while nodes are exchanged: bounds the time, however
large the cluster. A small cluster needs less."""

START_BUDGET = 15_000
"""Of the search budget, what the search from one grouping may take."""

SORT_KEYS = (full_step, quickest_first)
"""By what nodes are alike."""

GOOD_ENOUGH = 0.95
"""Share of the steps that many nodes would make if layers were divisible, from which on nothing
better is looked for."""

PIPELINE_COUNTS, STAGE_COUNTS = 24, 48
"""How many numbers of pipelines, and of stages of a replicated pipeline, are tried besides one."""


def place(nodes: Sequence[Candidate], model: ModelShape, *, exact: int = EXHAUSTIVE) -> Placement:
    """Spans for the most steps a second.

    All layers are covered wherever the nodes' memory and trust allow it; nodes that would only slow
    the others down have nothing to serve. The order of the nodes makes no difference.

    Args:
        nodes: The nodes to place.
        model: The model whose layers they serve.
        exact: Number of nodes up to which all groupings are compared.
    """
    left = sorted(nodes, key=lambda node: node.node_id)
    pipelines: list[Pipeline] = []
    while more := _placed(left, model, exact):
        pipelines += more
        serving = {name for pipeline in more for name in pipeline.spans}
        left = [node for node in left if node.node_id not in serving]
    pipelines.sort(key=lambda pipeline: (-pipeline.rate, pipeline.stages[0].node_ids))
    return Placement(tuple(pipelines))


def _placed(nodes: Sequence[Candidate], model: ModelShape, exact: int) -> list[Pipeline]:
    """Pipelines of some of the nodes. The nodes left out are too slow for these pipelines, but may
    make others."""
    together = replicated_pipeline(
        nodes, model, _counts(min(len(nodes), model.layers), STAGE_COUNTS)
    )
    bound = sum(node.speed for node in nodes) / (model.layers + model.edge_work)
    if together and len(nodes) > exact and together.rate >= GOOD_ENOUGH * bound:
        return [together]
    groups = (_best_grouping if len(nodes) <= exact else _good_grouping)(nodes, model)
    apart = [pipeline for group in groups if (pipeline := _pipeline(group, model))]
    if together and together.rate > sum(pipeline.rate for pipeline in apart):
        return [together]
    return apart


def _pipeline(nodes: Sequence[Candidate], model: ModelShape) -> Pipeline | None:
    """The node with the edge first, then the longest spans first: so nodes that are alike get the
    same cuts in several pipelines, and can replace each other."""
    filling = water_fill(nodes, model.layers, model.edge_work)
    if filling is None:
        return None
    order = sorted(
        (number for number, layers in enumerate(filling.layers) if layers),
        key=lambda number: (number != filling.edge_holder, -filling.layers[number]),
    )
    spans = consecutive_spans([filling.layers[number] for number in order])
    return Pipeline(
        tuple(
            Stage((nodes[number].node_id,), span, nodes[number].rate(span, model))
            for number, span in zip(order, spans, strict=True)
        )
    )


def _best_grouping(nodes: Sequence[Candidate], model: ModelShape) -> list[list[Candidate]]:
    """By dynamic programming over subsets: the first node is idle or in some group, and the rest is
    a smaller subset."""
    rates = [0.0] * (1 << len(nodes))
    for subset in range(1, len(rates)):
        filling = water_fill(_members(nodes, subset), model.layers, model.edge_work)
        rates[subset] = filling.rate if filling else 0.0
    best = [(0.0, 0)] * len(rates)
    for subset in range(1, len(rates)):
        first = subset & -subset
        rest = others = subset ^ first
        best[subset] = (best[rest][0], 0)
        while True:
            group = first | others
            rate = rates[group] + best[subset ^ group][0]
            if rate > best[subset][0]:
                best[subset] = (rate, group)
            if not others:
                break
            others = (others - 1) & rest
    groups, left = [], len(rates) - 1
    while left:
        group = best[left][1]
        if group:
            groups.append(_members(nodes, group))
        left ^= group or left & -left
    return groups


def _members(nodes: Sequence[Candidate], subset: int) -> list[Candidate]:
    return [node for number, node in enumerate(nodes) if subset >> number & 1]


def _good_grouping(nodes: Sequence[Candidate], model: ModelShape) -> list[list[Candidate]]:
    most = min(
        sum(node.edge_capacity > 0 for node in nodes),
        sum(min(node.capacity, model.layers) for node in nodes) // model.layers,
    )
    starts = [
        Groups(group_alike(nodes, count, model, sort_key), model)
        for count in _counts(most, PIPELINE_COUNTS)
        for sort_key in SORT_KEYS
    ]
    starts.sort(key=lambda groups: -groups.throughput)
    budget = SEARCH_BUDGET
    for groups in starts:
        share = min(START_BUDGET, budget)
        budget -= share - groups.improve(share)
    best = max(starts, key=lambda groups: groups.throughput, default=None)
    return best.members if best else []


def _counts(most: int, steps: int) -> list[int]:
    """Up to ``steps + 1`` numbers from 1 to ``most``, by ever larger steps."""
    return sorted({round(most ** (step / steps)) for step in range(steps + 1)} if most else ())
