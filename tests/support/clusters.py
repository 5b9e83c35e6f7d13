"""Clusters to place, made by hand or by hypothesis; and the best of all placements."""

from collections.abc import Sequence
from itertools import product

from hypothesis import strategies as st

from benchmarks.placement import groupings
from market.placement.solver import Candidate, ModelShape, RebalancePlan, Span

GB = 10**9


def node(
    name: str, speed: float = 1.0, capacity: int = 8, *, edge: int | None = None, load: float = GB
) -> Candidate:
    """A node that is trusted with the edge, and holds it beside all its layers but one."""
    return Candidate(
        node_id=name,
        speed=speed,
        capacity=capacity,
        edge_capacity=max(0, capacity - 1) if edge is None else edge,
        layer_bytes=GB,
        edge_bytes=GB,
        load_speed=load,
    )


@st.composite
def candidates(draw: st.DrawFn, least: int = 1, most: int = 5, layers: int = 6) -> list[Candidate]:
    """Nodes that differ; about half of them are trusted with the edge."""
    found = []
    for number in range(draw(st.integers(least, most))):
        capacity = draw(st.integers(0, layers))
        found.append(
            node(
                f"n{number}",
                draw(st.integers(1, 40)) * 1.7,
                capacity,
                edge=draw(st.integers(0, capacity)) if draw(st.booleans()) else 0,
            )
        )
    return found


models = st.builds(ModelShape, st.integers(1, 6), st.sampled_from([0.0, 0.5, 0.941, 3.0]))


def best_slowest(nodes: Sequence[Candidate], model: ModelShape) -> float:
    """Steps a second of the best pipeline of all, whoever holds the edge; 0 if there is none."""
    best = 0.0
    for counts in product(*(range(min(n.capacity, model.layers) + 1) for n in nodes)):
        if sum(counts) != model.layers:
            continue
        serving = [(n, count) for n, count in zip(nodes, counts, strict=True) if count]
        for holder, held in serving:
            if held <= holder.edge_capacity:
                slowest = min(
                    n.speed / (count + (model.edge_work if n is holder else 0))
                    for n, count in serving
                )
                best = max(best, slowest)
    return best


def best_throughput(nodes: Sequence[Candidate], model: ModelShape) -> float:
    """Of the best grouping of all, idle nodes included."""
    rates: dict[tuple[str, ...], float] = {}

    def rate(group: Sequence[Candidate]) -> float:
        key = tuple(n.node_id for n in group)
        if key not in rates:
            rates[key] = best_slowest(group, model)
        return rates[key]

    return max(sum(map(rate, groups)) for groups in groupings(list(nodes)))


def rebalanced(spans: dict[str, Span], plan: RebalancePlan) -> dict[str, Span]:
    """What is served after a rebalance."""
    after: dict[str, Span | None] = {**spans, **{c.node_id: c.new for c in plan.changes}}
    return {name: span for name, span in after.items() if span is not None}
