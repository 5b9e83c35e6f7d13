"""One pipeline: its layers over its nodes, so that the slowest stage is as quick as can be.

Water is poured into vessels as wide as the nodes are quick, and as deep as their memory lets them
be: the level is the time of a step, the same for all but those that are full. What is left of
whole layers goes where the step grows least, so the slowest stage is the best of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import accumulate

from market.placement.solver.types import Candidate, Span

EDGE_TRIES = 8
"""Nodes of a pipeline that are tried as the edge's: all of a short one, the quickest of a long."""


@dataclass(frozen=True, slots=True)
class Filling:
    """Layers of each node, in the order given; 0 for those that are of no use. ``rate``: steps a
    second of the slowest. ``holder``: the edge's place in that order; none without an edge."""

    rate: float
    layers: tuple[int, ...]
    holder: int | None


def water_fill(nodes: Sequence[Candidate], layers: int, edge_work: float | None) -> Filling | None:
    """The quickest way to spread layers over nodes; none if they do not fit.

    ``edge_work``: the edge's, in layers, where the first layers are among them; else none.
    """
    if edge_work is None:
        return _pour(nodes, layers, None, 0.0)
    best = None
    for holder in _holders(nodes):
        filling = _pour(nodes, layers, holder, edge_work)
        if filling is not None and (best is None or filling.rate > best.rate):
            best = filling
    return best


def even_split(layers: int, nodes: int) -> list[Span]:
    """Contiguous spans that cover ``[0, layers)``, as equal as can be; the first ones longer.

    Raises:
        ValueError: fewer layers than nodes, or no node.
    """
    if not 1 <= nodes <= layers:
        raise ValueError(f"{layers} layers can be split over 1 to {layers} nodes, not {nodes}.")
    size, longer = divmod(layers, nodes)
    return in_a_row([size + (node < longer) for node in range(nodes)])


def in_a_row(sizes: Sequence[int], start: int = 0) -> list[Span]:
    """Spans of these sizes, each from where the one before it ends."""
    spans = []
    for size in sizes:
        spans.append((start, start + size))
        start += size
    return spans


def _holders(nodes: Sequence[Candidate]) -> list[int]:
    """Who might hold the edge: the quickest, and who loses least room to it, so that a cover is
    found wherever there is one."""
    able = [place for place, node in enumerate(nodes) if node.edge_capacity > 0]
    if len(able) <= EDGE_TRIES:
        return able
    roomiest = min(able, key=lambda place: nodes[place].capacity - nodes[place].edge_capacity)
    quickest = sorted(able, key=lambda place: -nodes[place].speed)
    return [*dict.fromkeys([*quickest[: EDGE_TRIES - 1], roomiest])]


def _pour(
    nodes: Sequence[Candidate], layers: int, holder: int | None, edge_work: float
) -> Filling | None:
    depths = [node.capacity for node in nodes]
    floors = [0.0] * len(nodes)
    if holder is not None:
        depths[holder], floors[holder] = nodes[holder].edge_capacity, edge_work
    if sum(depths) < layers:
        return None
    speeds = [node.speed for node in nodes]
    pinned = None
    level = level_of(speeds, depths, floors, layers)
    if holder is not None and speeds[holder] * level - edge_work < 1:
        # The first layer goes with the edge, however slow that makes the stage.
        pinned, depths[holder] = holder, 1
        rest = [place for place in range(len(nodes)) if place != holder]
        level = level_of(
            [speeds[place] for place in rest],
            [depths[place] for place in rest],
            [0.0] * len(rest),
            layers - 1,
        )
    counts = [
        1 if place == pinned else min(depth, int(max(0.0, speed * level - floor)))
        for place, (speed, depth, floor) in enumerate(zip(speeds, depths, floors, strict=True))
    ]
    _give_rest(counts, layers - sum(counts), speeds, depths, floors)
    slowest = max(
        (count + floor) / speed
        for count, floor, speed in zip(counts, floors, speeds, strict=True)
        if count
    )
    return Filling(1 / slowest, tuple(counts), holder)


def level_of(
    speeds: Sequence[float], depths: Sequence[int], floors: Sequence[float], layers: float
) -> float:
    """Seconds of a step, if layers could be cut: those who are full first leave it to the rest.
    ``depths`` in layers; ``floors``: the edge's work, for who has it."""
    full = [
        (depth + floor) / speed for speed, depth, floor in zip(speeds, depths, floors, strict=True)
    ]
    order = sorted(range(len(speeds)), key=full.__getitem__)
    # Summed from the back: taken off one by one, the slow ones would drown in the rounding.
    together = list(accumulate(speeds[place] for place in reversed(order)))[::-1]
    missing, level = layers + sum(floors), 0.0
    for place, speed in zip(order, together, strict=True):
        level = missing / speed
        if full[place] >= level:
            return level
        missing -= depths[place] + floors[place]
        level = full[place]
    return level


def _give_rest(
    counts: list[int],
    rest: int,
    speeds: Sequence[float],
    depths: Sequence[int],
    floors: Sequence[float],
) -> None:
    """One layer after another to the node whose step is then the shortest."""
    steps = [
        ((count + 1 + floors[place]) / speeds[place], place)
        for place, count in enumerate(counts)
        if count < depths[place]
    ]
    heapify(steps)
    for _ in range(rest):
        _, place = steps[0]
        counts[place] += 1
        room = counts[place] < depths[place]
        step = (counts[place] + 1 + floors[place]) / speeds[place] if room else float("inf")
        heapreplace(steps, (step, place))
