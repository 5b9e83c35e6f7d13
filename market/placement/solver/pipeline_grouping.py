"""A swarm: its nodes over pipelines, so that all together make the most steps a second.

If layers could be cut, any grouping of the same nodes would make as many steps: their speeds' sum
over the model's work. Groups differ by what cannot be cut (a slow node's last layer, which holds up
everybody) and by memory (a quick node that is full waits for the others). So like goes with like:
by speed, or by the step that a full node takes. Both are tried, with fewer and with more pipelines;
from the best of them nodes change places as long as that helps. A few nodes are grouped in the best
way of all. A crowd needs no such care: one pipeline whose stages have replicas makes nearly all
that its nodes could.
"""

from collections.abc import Sequence

from market.placement.solver.local_search import Groups, full_step, group_alike, speed
from market.placement.solver.replicated_pipeline import replicated_pipeline
from market.placement.solver.types import Candidate, ModelShape, Pipeline, Placement, Stage
from market.placement.solver.water_filling import in_a_row, water_fill

EXACT = 8
"""Nodes up to which all groupings are compared: 3 to that power."""

BUDGET = 60_000
"""Nodes of all the pipelines that are weighed while nodes change places: bounds the time, whatever
the swarm. A small one gets by with less."""

SHARE = 15_000
"""What the search from one grouping may take of it."""

LIKENESSES = (full_step, speed)

ENOUGH = 0.95
"""Share of what many nodes would make if layers could be cut, from which on nothing better is
looked for."""

PIPELINES, STAGES = 24, 48
"""How many numbers of pipelines, and of a crowd's stages, are tried besides one."""


def place(nodes: Sequence[Candidate], model: ModelShape, *, exact: int = EXACT) -> Placement:
    """Spans for the most steps a second.

    All layers are covered wherever the nodes' memory and trust allow it; nodes that would only
    hold the others up have nothing to serve. The order of the nodes makes no difference.

    Args:
        exact: Nodes up to which all groupings are compared.
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
    """Those whom it leaves out are too slow for these pipelines; not for some of their own."""
    together = replicated_pipeline(nodes, model, _numbers(min(len(nodes), model.layers), STAGES))
    bound = sum(node.speed for node in nodes) / (model.layers + model.edge_work)
    if together and len(nodes) > exact and together.rate >= ENOUGH * bound:
        return [together]
    groups = _best_of_all(nodes, model) if len(nodes) <= exact else _good(nodes, model)
    apart = [pipeline for group in groups if (pipeline := _pipeline(group, model))]
    if together and together.rate > sum(pipeline.rate for pipeline in apart):
        return [together]
    return apart


def _pipeline(nodes: Sequence[Candidate], model: ModelShape) -> Pipeline | None:
    """The edge's node first, then the longest spans first: like nodes get like cuts, and can stand
    in for each other."""
    filling = water_fill(nodes, model.layers, model.edge_work)
    if filling is None:
        return None
    order = sorted(
        (number for number, layers in enumerate(filling.layers) if layers),
        key=lambda number: (number != filling.holder, -filling.layers[number]),
    )
    spans = in_a_row([filling.layers[number] for number in order])
    return Pipeline(
        tuple(
            Stage((nodes[number].node_id,), span, nodes[number].rate(span, model))
            for number, span in zip(order, spans, strict=True)
        )
    )


def _best_of_all(nodes: Sequence[Candidate], model: ModelShape) -> list[list[Candidate]]:
    """By dynamic programming over subsets: the first node is idle or in some group; the rest is a
    smaller swarm."""
    rates = [0.0] * (1 << len(nodes))
    for subset in range(1, len(rates)):
        filling = water_fill(_members(nodes, subset), model.layers, model.edge_work)
        rates[subset] = filling.rate if filling else 0.0
    best = [(0.0, 0)] * len(rates)
    for swarm in range(1, len(rates)):
        first = swarm & -swarm
        rest = others = swarm ^ first
        best[swarm] = (best[rest][0], 0)
        while True:
            group = first | others
            rate = rates[group] + best[swarm ^ group][0]
            if rate > best[swarm][0]:
                best[swarm] = (rate, group)
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


def _good(nodes: Sequence[Candidate], model: ModelShape) -> list[list[Candidate]]:
    most = min(
        sum(node.edge_capacity > 0 for node in nodes),
        sum(min(node.capacity, model.layers) for node in nodes) // model.layers,
    )
    starts = [
        Groups(group_alike(nodes, count, model, likeness), model)
        for count in _numbers(most, PIPELINES)
        for likeness in LIKENESSES
    ]
    starts.sort(key=lambda groups: -groups.throughput)
    budget = BUDGET
    for groups in starts:
        share = min(SHARE, budget)
        budget -= share - groups.improve(share)
    best = max(starts, key=lambda groups: groups.throughput, default=None)
    return best.members if best else []


def _numbers(most: int, steps: int) -> list[int]:
    """From one to as many as there could be, by ever larger steps."""
    return sorted({round(most ** (step / steps)) for step in range(steps + 1)} if most else ())
