"""Placing unlike nodes, beside simpler ways: `python -m benchmarks.placement --help`."""

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

from benchmarks.common.machine import OthersMeter
from benchmarks.common.output import close, console
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
"""Nodes of a swarm of which all groupings are tried."""

SIZES = (10, 100, 1000)
TRUSTED = 0.3
"""Share of nodes that the operator trusts with the edge."""

REPEATS = 3

WAVES = 20
"""A growing swarm looks for a move so many times while it grows, and then until none pays."""

Way = Callable[[Sequence[Device], ModelShape], float]
"""Steps a second that a swarm makes when it is placed in some way; 0 if layers are missing."""


def ours(devices: Sequence[Device], model: ModelShape) -> float:
    return place([device.node for device in devices], model).throughput


def searched(devices: Sequence[Device], model: ModelShape) -> float:
    """As larger swarms are placed."""
    return place([device.node for device in devices], model, exact=0).throughput


def one_pipeline(devices: Sequence[Device], model: ModelShape) -> float:
    filling = water_fill([device.node for device in devices], model.layers, model.edge_work)
    return filling.rate if filling else 0.0


def equal(devices: Sequence[Device], model: ModelShape) -> float:
    sizes = [end - start for start, end in even_split(model.layers, len(devices))]
    return _in_a_row(devices, sizes, model)


def specified(devices: Sequence[Device], model: ModelShape, *, mended: bool = False) -> float:
    """`int(total_layers * share)` by memory (specification §5.2). Mended: what that loses goes by
    largest remainder."""
    memory = sum(device.vram_gb for device in devices)
    exact = [model.layers * device.vram_gb / memory for device in devices]
    sizes = [int(layers) for layers in exact]
    if mended:
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


def best(devices: Sequence[Device], model: ModelShape) -> float:
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
    """All ways to part nodes into groups."""
    if not nodes:
        yield []
        return
    first, *rest = nodes
    for groups in groupings(rest):
        yield [[first], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [first, *group], *groups[number + 1 :]]


WAYS: Mapping[str, Way] = {
    "ours": ours,
    "ours, as with many nodes": searched,
    "ours, one pipeline of all": one_pipeline,
    "equal split": equal,
    "specification's split": specified,
    "the same, no layer lost": partial(specified, mended=True),
}


@dataclass(frozen=True, slots=True)
class Grown:
    """One large swarm. Seconds of CPU time of one call each; throughputs as shares of what it would
    be if layers could be cut and memory had no end. ``changes``: spans that moves changed."""

    nodes: int
    pipelines: int
    place_s: list[float]
    join_s: float
    propose_s: float
    placed: float
    grown: float
    moves: int
    changes: int


def compare(rng: Random, swarms: int, model: ModelShape) -> dict[str, list[float]]:
    """Throughput of each way as a share of the best, by swarm; of swarms that can serve at all."""
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    while len(shares["ours"]) < swarms:
        devices = draw(rng, rng.randint(SMALLEST, LARGEST), MODEL, trusted=0.5)
        most = best(devices, model)
        if most:
            for name, way in WAYS.items():
                shares[name].append(way(devices, model) / most)
    return shares


def grow(rng: Random, count: int, model: ModelShape) -> Grown:
    """Place a swarm; and let another come node by node, with moves in between."""
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
    moving = True
    while moving or len(known) < count:
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
        moving = move is not None
        if move is not None:
            changes.append(len(move.changes))
            spans = _after(spans, move)
    return Grown(
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


def _after(spans: Mapping[str, Span], move: RebalancePlan) -> dict[str, Span]:
    changed = {change.node_id: change.new for change in move.changes}
    kept = {name: span for name, span in spans.items() if name not in changed}
    return kept | {name: span for name, span in changed.items() if span}


def show_shares(shares: Mapping[str, Sequence[float]]) -> None:
    table = Table(
        title=f"Throughput as a share of the best grouping's, {len(shares['ours'])} swarms of "
        f"{SMALLEST} to {LARGEST} nodes, {MODEL}",
        title_justify="left",
    )
    for column in ("", "serve", "mean of all", "median", "worst that serves", "within 5 %"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for way, found in shares.items():
        serving = [share for share in found if share]
        table.add_row(
            way,
            f"{len(serving)}",
            f"{fmean(found):.3f}",
            f"{median(found):.3f}",
            f"{min(serving):.3f}" if serving else "-",
            f"{sum(share >= 0.95 for share in found)}",
        )
    console.print(table)


def show_grown(grown: Sequence[Grown]) -> None:
    table = Table(
        title=f"Large swarms, {LARGE_MODEL}, {TRUSTED:.0%} of the nodes trusted with the edge",
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
    for swarm in grown:
        table.add_row(
            str(swarm.nodes),
            str(swarm.pipelines),
            f"{median(swarm.place_s):.2f}",
            f"{swarm.join_s * 1000:.1f}",
            f"{swarm.propose_s:.2f}",
            f"{swarm.placed:.3f}",
            f"{swarm.grown:.3f}",
            str(swarm.moves),
            str(swarm.changes),
        )
    console.print(table)
    console.print(
        "Placed, grown: throughput as a share of the speeds' sum over the model's work. No "
        "placement makes more: layers are whole, and memory ends."
    )


def main(
    swarms: Annotated[int, typer.Option(min=1, help="Small swarms to compare ways on.")] = 200,
    largest: Annotated[int, typer.Option(help="Leave out swarms with more nodes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Compare ways of placing layers on unlike nodes, by steps a second of all pipelines together.

    Swarms are drawn at random. A device has 8 to 80 GB, full precision, 8 or 4 bits, and one to 16
    times the speed that one core was measured to have with a model of 1.1 billion parameters, by
    layer. It holds as many layers as fit with KV for 8 sessions of 2,048 positions. What a swarm
    makes is computed, not run: a stage makes its node's layers a second over its own layers (the
    first has the edge's work besides), a pipeline as much as its slowest stage.

    Small swarms: every grouping into pipelines is tried, and the best is what the ways are held
    against. More than that can be made where stages have replicas. One pipeline of all: what is
    left of ours without replicas. Equal split: all nodes in one pipeline, with as many layers each.
    The specification's: the same by memory, rounded down. A swarm in which a layer has no node, or
    a node more layers than it holds, serves nothing.

    Large swarms: seconds of CPU time to place all; to find a span for one more node, while nobody
    moves; and to look for the one move that pays most (means over a growing swarm). That one starts
    with nobody; nodes join, by ones or by twentieths of all, with a move in between if one pays.
    """
    began = time.monotonic()
    meter = OthersMeter()
    rng = Random(seed)
    with console.status("Trying all groupings of small swarms"):
        shares = compare(rng, swarms, model_shape(MODEL))
    show_shares(shares)
    grown = []
    for size in (size for size in SIZES if size <= largest):
        with console.status(f"{size} nodes"):
            grown.append(grow(rng, size, model_shape(LARGE_MODEL)))
    show_grown(grown)
    close(
        {"shares": shares, "grown": [asdict(swarm) for swarm in grown]},
        others=[meter.read()],
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
