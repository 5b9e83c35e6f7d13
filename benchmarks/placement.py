"""Placement of unlike nodes, and simpler methods: `python -m benchmarks.placement --help`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, write_results
from benchmarks.simulated.clusters import LARGE_MODEL, MODEL, Device, draw, model_shape
from market.placement.solver import (
    Candidate,
    ModelShape,
    RebalancePlan,
    Span,
    even_split,
    join,
    place,
    propose,
    throughput,
)
from market.placement.solver.water_filling import water_fill

SMALLEST, LARGEST = 3, 7
"""Nodes of a cluster of which all groupings are tried."""

SIZES = (10, 100, 1000)
TRUSTED = 0.3
"""Share of nodes that the operator trusts with the edge."""

REPEATS = 3

WAVES = 20
"""How often a growing cluster looks for a move while it grows; then until none pays."""

PlacementMethod = Callable[[Sequence[Device], ModelShape], float]
"""Steps a second that a cluster makes when it is placed by a method; 0 if layers are missing."""


def solver_placement(devices: Sequence[Device], model: ModelShape) -> float:
    return place([device.node for device in devices], model).throughput


def solver_search(devices: Sequence[Device], model: ModelShape) -> float:
    """Throughput by the search that places larger clusters."""
    return place([device.node for device in devices], model, exact=0).throughput


def one_pipeline(devices: Sequence[Device], model: ModelShape) -> float:
    filling = water_fill([device.node for device in devices], model.layers, model.edge_work)
    return filling.rate if filling else 0.0


def equal_split(devices: Sequence[Device], model: ModelShape) -> float:
    sizes = [end - start for start, end in even_split(model.layers, len(devices))]
    return _in_a_row(devices, sizes, model)


def specified(devices: Sequence[Device], model: ModelShape, *, lossless: bool = False) -> float:
    """`int(total_layers * share)` by memory (specification §5.2). Lossless: the layers that this
    loses go by largest remainder."""
    memory = sum(device.vram_gb for device in devices)
    exact = [model.layers * device.vram_gb / memory for device in devices]
    sizes = [int(layers) for layers in exact]
    if lossless:
        order = sorted(range(len(devices)), key=lambda number: sizes[number] - exact[number])
        for number in order[: model.layers - sum(sizes)]:
            sizes[number] += 1
    return _in_a_row(devices, sizes, model)


def _in_a_row(devices: Sequence[Device], sizes: Sequence[int], model: ModelShape) -> float:
    """One pipeline; a trusted node that holds its layers beside the edge goes first, if any does.
    A node that does not hold its layers serves none."""
    nodes = [device.node for device in devices]
    able = [n for n, node in enumerate(nodes) if 0 < sizes[n] <= node.edge_capacity]
    order = sorted(range(len(nodes)), key=lambda n: n not in able[:1])
    spans: dict[str, Span] = {}
    start = 0
    for number in order:
        if sizes[number]:
            spans[nodes[number].node_id] = (start, start + sizes[number])
            start += sizes[number]
    return throughput({node.node_id: node for node in nodes}, spans, model)


def best_grouping(devices: Sequence[Device], model: ModelShape) -> float:
    """The best of all groupings, each pipeline's step tried from the shortest on. Nothing of
    `market.placement.solver` is used."""
    rates: dict[frozenset[str], float] = {}

    def rate(group: Sequence[Candidate]) -> float:
        key = frozenset(node.node_id for node in group)
        if key not in rates:
            rates[key] = _quickest(group, model)
        return rates[key]

    return max(sum(map(rate, groups)) for groups in groupings([d.node for d in devices]))


def _quickest(group: Sequence[Candidate], model: ModelShape) -> float:
    """Steps a second, by trying every holder of the edge and every step that a node could take."""
    found = 0.0
    for holder in group:
        works = {
            node.node_id: [
                (layers + (model.edge_work if node is holder else 0.0)) / node.speed
                for layers in range(
                    1, (node.edge_capacity if node is holder else node.capacity) + 1
                )
            ]
            for node in group
        }
        steps = sorted(step for each in works.values() for step in each)
        if len(steps) < model.layers or not works[holder.node_id]:
            continue
        # The edge's node has to serve one layer; of all others the shortest steps are taken.
        first = works[holder.node_id][0]
        rest = sorted([*works[holder.node_id][1:], *_all_but(works, holder)])
        slowest = max(first, *rest[: model.layers - 1]) if model.layers > 1 else first
        found = max(found, 1 / slowest)
    return found


def _all_but(works: Mapping[str, Sequence[float]], holder: Candidate) -> list[float]:
    return [step for name, each in works.items() if name != holder.node_id for step in each]


def groupings(nodes: list[Candidate]) -> Iterator[list[list[Candidate]]]:
    """All partitions of the nodes into groups."""
    if not nodes:
        yield []
        return
    first, *rest = nodes
    for groups in groupings(rest):
        yield [[first], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [first, *group], *groups[number + 1 :]]


METHODS: Mapping[str, PlacementMethod] = {
    "ours": solver_placement,
    "ours, as with many nodes": solver_search,
    "ours, one pipeline of all": one_pipeline,
    "equal split": equal_split,
    "specification's split": specified,
    "the same, no layer lost": partial(specified, lossless=True),
}


@dataclass(frozen=True, slots=True)
class GrownCluster:
    """One large cluster. Seconds of CPU time of one call each; throughputs as shares of what it
    would be if layers could be cut and memory were unlimited. ``changes``: spans that moves
    changed."""

    nodes: int
    pipelines: int
    place_s: list[float]
    join_s: float
    propose_s: float
    placed: float
    grown: float
    moves: int
    changes: int


def compare(rng: Random, clusters: int, model: ModelShape) -> dict[str, list[float]]:
    """Throughput of each method as a share of the best, by cluster; of clusters that can serve."""
    shares: dict[str, list[float]] = {method: [] for method in METHODS}
    while len(shares["ours"]) < clusters:
        devices = draw(rng, rng.randint(SMALLEST, LARGEST), MODEL, trusted=0.5)
        most = best_grouping(devices, model)
        if most:
            for name, method in METHODS.items():
                shares[name].append(method(devices, model) / most)
    return shares


def grow(rng: Random, count: int, model: ModelShape) -> GrownCluster:
    """Place a cluster at once; and let one grow node by node, with moves in between."""
    nodes = [device.node for device in draw(rng, count, LARGE_MODEL, trusted=TRUSTED)]
    bound = sum(node.speed for node in nodes) / (model.layers + model.edge_work)
    placing = []
    for _ in range(REPEATS):
        began = time.thread_time()
        placement = place(nodes, model)
        placing.append(time.thread_time() - began)

    known: dict[str, Candidate] = {}
    spans: dict[str, Span] = {}
    joining, proposing, changes = [], [], []
    improving = True
    while improving or len(known) < count:
        for node in nodes[len(known) : len(known) + max(1, count // WAVES)]:
            began = time.thread_time()
            span = join(node, known, spans, model)
            joining.append(time.thread_time() - began)
            known[node.node_id] = node
            if span:
                spans[node.node_id] = span
        began = time.thread_time()
        move = propose(list(known.values()), spans, model)
        proposing.append(time.thread_time() - began)
        improving = move is not None
        if move is not None:
            changes.append(len(move.changes))
            spans = _spans_after(spans, move)
    return GrownCluster(
        nodes=count,
        pipelines=len(placement.pipelines),
        place_s=placing,
        join_s=fmean(joining),
        propose_s=fmean(proposing),
        placed=placement.throughput / bound,
        grown=throughput(known, spans, model) / bound,
        moves=len(changes),
        changes=sum(changes),
    )


def _spans_after(spans: Mapping[str, Span], move: RebalancePlan) -> dict[str, Span]:
    changed = {change.node_id: change.new for change in move.changes}
    kept = {name: span for name, span in spans.items() if name not in changed}
    return kept | {name: span for name, span in changed.items() if span}


def show_shares(shares: Mapping[str, Sequence[float]]) -> None:
    table = Table(
        title=f"Throughput as a share of the best grouping's, {len(shares['ours'])} clusters of "
        f"{SMALLEST} to {LARGEST} nodes, {MODEL}",
        title_justify="left",
    )
    for column in ("", "serve", "mean of all", "median", "worst that serves", "within 5 %"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for method, found in shares.items():
        serving = [share for share in found if share]
        table.add_row(
            method,
            f"{len(serving)}",
            f"{fmean(found):.3f}",
            f"{median(found):.3f}",
            f"{min(serving):.3f}" if serving else "-",
            f"{sum(share >= 0.95 for share in found)}",
        )
    console.print(table)


def show_grown(grown: Sequence[GrownCluster]) -> None:
    table = Table(
        title=f"Large clusters, {LARGE_MODEL}, {TRUSTED:.0%} of the nodes trusted with the edge",
        title_justify="left",
    )
    for column in (
        "nodes",
        "pipelines",
        "place, s",
        "join, ms",
        "propose, s",
        "placed",
        "grown",
        "moves",
        "spans moved",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for cluster in grown:
        table.add_row(
            str(cluster.nodes),
            str(cluster.pipelines),
            f"{median(cluster.place_s):.2f}",
            f"{cluster.join_s * 1000:.1f}",
            f"{cluster.propose_s:.2f}",
            f"{cluster.placed:.3f}",
            f"{cluster.grown:.3f}",
            str(cluster.moves),
            str(cluster.changes),
        )
    console.print(table)
    console.print(
        "Placed, grown: throughput as a share of the speeds' sum over the model's work. No "
        "placement makes more: layers are whole, and memory is limited."
    )


def main(
    clusters: Annotated[
        int, typer.Option("--swarms", min=1, help="Small clusters to compare methods on.")
    ] = 200,
    largest: Annotated[int, typer.Option(help="Leave out clusters with more nodes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Compare methods of placing layers on unlike nodes, by the steps a second of all pipelines.

    Clusters are drawn at random. A device has 8 to 80 GB, full precision, 8 or 4 bits, and one to
    16 times the speed that one core was measured to have with a model of 1.1 billion parameters, by
    layer. It holds as many layers as fit with KV for 8 sessions of 2,048 positions. What a cluster
    makes is computed, not run: a stage makes its node's layers a second over its own layers (the
    first has the edge's work besides), a pipeline as much as its slowest stage.

    Small clusters: every grouping into pipelines is tried, and the best is what the methods are
    held against. More than that can be made where stages have replicas. One pipeline of all: what
    is left of ours without replicas. Equal split: all nodes in one pipeline, with as many layers
    each. The specification's: the same by memory, rounded down. A cluster in which a layer has no
    node, or a node more layers than it holds, serves nothing.

    Large clusters: seconds of CPU time to place all; to find a span for one more node, while none
    moves; and to look for the one move that pays most (means over a growing cluster). That one
    starts empty; nodes join, by ones or by twentieths of all, with a move in between if one pays.
    """
    began = time.monotonic()
    meter = OtherCpuMeter()
    rng = Random(seed)
    with console.status("Trying all groupings of small clusters"):
        shares = compare(rng, clusters, model_shape(MODEL))
    show_shares(shares)
    grown = []
    for size in (size for size in SIZES if size <= largest):
        with console.status(f"{size} nodes"):
            grown.append(grow(rng, size, model_shape(LARGE_MODEL)))
    show_grown(grown)
    write_results(
        {"shares": shares, "grown": [asdict(cluster) for cluster in grown]},
        other_cpu=[meter.read()],
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
