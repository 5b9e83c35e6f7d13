"""One pipeline: its layers over its nodes, so that the slowest stage is as quick as can be.

Water-filling: each node takes layers in proportion to its speed, up to its capacity. The level is
the time of a step, equal for all nodes but those that are full. Fractions of layers are rounded
down, and the layers left over go one by one to the node whose step is then the shortest, so that no
other way to spread the layers has a quicker slowest stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import accumulate

from market.placement.solver.types import Candidate, Span

EDGE_CANDIDATES = 8
"""Nodes of a pipeline that are tried with the edge: all of a short pipeline, the quickest of a long
one."""


@dataclass(frozen=True, slots=True)
class Filling:
    """Layers of each node, in the order given; 0 for a node that would only slow the pipeline down.
    ``rate``: steps a second of the slowest node. ``edge_holder``: index of the node with the edge;
    none without an edge."""

    rate: float
    layers: tuple[int, ...]
    edge_holder: int | None


def water_fill(nodes: Sequence[Candidate], layers: int, edge_work: float | None) -> Filling | None:
    """The quickest way to spread layers over nodes; none if they do not fit.

    ``edge_work``: the edge's work in layers, if the first layer is among the layers; else none.
    """
    if edge_work is None:
        return _fill(nodes, layers, None, 0.0)
    best = None
    for edge_holder in _edge_candidates(nodes):
        filling = _fill(nodes, layers, edge_holder, edge_work)
        if filling is not None and (best is None or filling.rate > best.rate):
            best = filling
    return best


def even_split(layers: int, nodes: int) -> list[Span]:
    """Consecutive spans that cover ``[0, layers)``, as equal as can be; the first ones longer.

    Raises:
        ValueError: fewer layers than nodes, or no node.
    """
    if not 1 <= nodes <= layers:
        raise ValueError(f"{layers} layers can be split over 1 to {layers} nodes, not {nodes}.")
    size, longer = divmod(layers, nodes)
    return consecutive_spans([size + (node < longer) for node in range(nodes)])


def consecutive_spans(sizes: Sequence[int], start: int = 0) -> list[Span]:
    """Spans of the sizes given, the first from ``start``, each other from where the one before it
    ends."""
    spans = []
    for size in sizes:
        spans.append((start, start + size))
        start += size
    return spans


def _edge_candidates(nodes: Sequence[Candidate]) -> list[int]:
    """Indices of nodes to try with the edge: the quickest, and the one that loses fewest layers to
    the edge, so that a filling is found wherever there is one."""
    able = [index for index, node in enumerate(nodes) if node.edge_capacity > 0]
    if len(able) <= EDGE_CANDIDATES:
        return able
    least_lost = min(able, key=lambda index: nodes[index].capacity - nodes[index].edge_capacity)
    quickest = sorted(able, key=lambda index: -nodes[index].speed)
    return [*dict.fromkeys([*quickest[: EDGE_CANDIDATES - 1], least_lost])]


def _fill(
    nodes: Sequence[Candidate], layers: int, edge_holder: int | None, edge_work: float
) -> Filling | None:
    capacities = [node.capacity for node in nodes]
    edge_works = [0.0] * len(nodes)
    if edge_holder is not None:
        capacities[edge_holder] = nodes[edge_holder].edge_capacity
        edge_works[edge_holder] = edge_work
    if sum(capacities) < layers:
        return None
    speeds = [node.speed for node in nodes]
    pinned = None
    level = water_level(speeds, capacities, edge_works, layers)
    if edge_holder is not None and speeds[edge_holder] * level - edge_work < 1:
        # The node with the edge serves layer 0, however slow that makes the stage.
        pinned, capacities[edge_holder] = edge_holder, 1
        rest = [index for index in range(len(nodes)) if index != edge_holder]
        level = water_level(
            [speeds[index] for index in rest],
            [capacities[index] for index in rest],
            [0.0] * len(rest),
            layers - 1,
        )
    counts = [
        1 if index == pinned else min(capacity, int(max(0.0, speed * level - work)))
        for index, (speed, capacity, work) in enumerate(
            zip(speeds, capacities, edge_works, strict=True)
        )
    ]
    _distribute(counts, layers - sum(counts), speeds, capacities, edge_works)
    slowest = max(
        (count + work) / speed
        for count, work, speed in zip(counts, edge_works, speeds, strict=True)
        if count
    )
    return Filling(1 / slowest, tuple(counts), edge_holder)


def water_level(
    speeds: Sequence[float], capacities: Sequence[int], edge_works: Sequence[float], layers: float
) -> float:
    """Seconds of a step, equal for all nodes that are not full, if layers were divisible.

    Args:
        speeds: Layers a second, by node.
        capacities: Layers, by node.
        edge_works: The edge's work in layers for the node that holds it, and 0 for the others.
        layers: Layers to spread.
    """
    full = [
        (capacity + work) / speed
        for speed, capacity, work in zip(speeds, capacities, edge_works, strict=True)
    ]
    order = sorted(range(len(speeds)), key=full.__getitem__)
    # Summed from the back: subtracted one by one, slow nodes would be lost to rounding.
    together = list(accumulate(speeds[index] for index in reversed(order)))[::-1]
    missing, level = layers + sum(edge_works), 0.0
    for index, speed in zip(order, together, strict=True):
        level = missing / speed
        if full[index] >= level:
            return level
        missing -= capacities[index] + edge_works[index]
        level = full[index]
    return level


def _distribute(
    counts: list[int],
    rest: int,
    speeds: Sequence[float],
    capacities: Sequence[int],
    edge_works: Sequence[float],
) -> None:
    """Give one layer after another to the node whose step is then the shortest."""
    steps = [
        ((count + 1 + edge_works[index]) / speeds[index], index)
        for index, count in enumerate(counts)
        if count < capacities[index]
    ]
    heapify(steps)
    for _ in range(rest):
        _, index = steps[0]
        counts[index] += 1
        full = counts[index] == capacities[index]
        step = float("inf") if full else (counts[index] + 1 + edge_works[index]) / speeds[index]
        heapreplace(steps, (step, index))
