"""CPU time of choosing a route: `python -m benchmarks.routes --help`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, write_results
from benchmarks.simulated.clusters import LARGE_MODEL, SESSIONS, TOKENS, draw, model_shape
from market.geo.distance import Coordinates
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.placement.solver import ModelShape, place
from market.routing.route_search import cheapest_route
from market.routing.skip_reasons import explain_skips

SIZES = (10, 100, 1000)
CITIES = (
    Coordinates(40.71, -74.01),
    Coordinates(37.77, -122.42),
    Coordinates(52.52, 13.41),
    Coordinates(48.86, 2.35),
    Coordinates(35.68, 139.69),
    Coordinates(1.35, 103.82),
    Coordinates(-33.87, 151.21),
    Coordinates(-23.55, -46.63),
)
"""Nodes and users are placed within some degrees of one of these."""

POSITIONS = 1024
"""Positions of a generation: prompt and answer."""


@dataclass(frozen=True, slots=True)
class RouteTiming:
    """Milliseconds of CPU time of each choice, how many found a route, and its hops."""

    what: str
    nodes: int
    milliseconds: list[float]
    found: int
    hops: float


def cluster(rng: Random, count: int, model: ModelShape) -> list[Node]:
    """Nodes as the registry has them, with the spans that placement gives them; queues, hops and
    locations at random."""
    candidates = [device.node for device in draw(rng, count, LARGE_MODEL, trusted=0.3)]
    nodes = []
    by_id = {candidate.node_id: candidate for candidate in candidates}
    for node_id, span in sorted(place(candidates, model).spans.items()):
        location = random_location(rng) if rng.random() < 0.9 else None
        nodes.append(
            Node(
                node_id=node_id,
                wallet_address="",
                model_id=LARGE_MODEL,
                start_layer=span[0],
                end_layer=span[1],
                edge=span[0] == 0,
                trusted=by_id[node_id].edge_capacity > 0,
                gpu_model="",
                vram_gb=0,
                location="",
                public_addr="",
                is_healthy=True,
                latency_ms=1000 / by_id[node_id].rate(span, model),
                throughput_tokens_per_sec=0.0,
                current_requests=rng.randrange(SESSIONS),
                kv_positions=SESSIONS * TOKENS,
                last_seen=0.0,
                hop_ms=rng.uniform(5, 150),
                latitude=location.latitude if location else None,
                longitude=location.longitude if location else None,
            )
        )
    return nodes


def random_location(rng: Random) -> Coordinates:
    latitude, longitude = rng.choice(CITIES)
    return Coordinates(latitude + rng.uniform(-5, 5), longitude + rng.uniform(-5, 5))


def measure(rng: Random, nodes: Sequence[Node], layers: int, calls: int) -> list[RouteTiming]:
    """Times of choices for one user after another: of all nodes; with free KV that changes; and
    near the user."""
    everything = {node.node_id: SESSIONS * TOKENS for node in nodes}

    def free_kv_of_nodes() -> dict[str, int]:
        return {name: rng.randrange(most) for name, most in everything.items()}

    def timed(what: str, ask: Callable[[], Callable[[], list[Node] | None]]) -> RouteTiming:
        milliseconds, routes = [], []
        for _ in range(calls):
            call = ask()
            began = time.thread_time()
            route = call()
            milliseconds.append(1000 * (time.thread_time() - began))
            if route is not None:
                routes.append(len(route))
        return RouteTiming(what, len(nodes), milliseconds, len(routes), median(routes or [0]))

    def of_all() -> Callable[[], list[Node] | None]:
        return lambda: cheapest_route(nodes, layers)

    def with_free_kv() -> Callable[[], list[Node] | None]:
        free_kv = free_kv_of_nodes()
        return lambda: cheapest_route(nodes, layers, positions=POSITIONS, rooms=free_kv)

    def near_the_user() -> Callable[[], list[Node] | None]:
        free_kv, here = free_kv_of_nodes(), random_location(rng)
        return lambda: cheapest_route(nodes, layers, positions=POSITIONS, rooms=free_kv, near=here)

    def with_explanation() -> Callable[[], list[Node] | None]:
        free_kv = free_kv_of_nodes()
        route = cheapest_route(nodes, layers, positions=POSITIONS, rooms=free_kv)
        live = [LiveNode(node, cooling_down=False) for node in nodes]

        def explain() -> list[Node] | None:
            explain_skips(live, layers, route or [], positions=POSITIONS, rooms=free_kv)
            return route

        return explain

    return [
        timed("all", of_all),
        timed("with free KV", with_free_kv),
        timed("with free KV, near the user", near_the_user),
        timed("why not the others, after it", with_explanation),
    ]


def show(measured: Sequence[RouteTiming]) -> None:
    table = Table(title=f"One choice, {LARGE_MODEL}", title_justify="left")
    for column in (
        "nodes that serve",
        "of them",
        "p50, ms",
        "p99, ms",
        "found",
        "nodes of a route",
    ):
        table.add_column(column, justify="left" if column == "of them" else "right", no_wrap=True)
    for timed in measured:
        table.add_row(
            str(timed.nodes),
            timed.what,
            f"{median(timed.milliseconds):.2f}",
            f"{quantiles(timed.milliseconds, n=100)[98]:.2f}",
            f"{timed.found / len(timed.milliseconds):.0%}",
            f"{timed.hops:.0f}",
        )
    console.print(table)


def main(
    calls: Annotated[int, typer.Option(min=2, help="Choices of each kind.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Choose routes through clusters of 10, 100 and 1,000 nodes that were placed for a model of 80
    layers.

    All: the cheapest path by steps, hops and queues. With free KV: only nodes with free KV cache
    for 1,024 positions, of which each has a random amount. Near the user: within 1,000 km of a user
    somewhere, then 2,000 and so on, and at last anywhere; a tenth of the nodes have no known
    location. Reading the registry is not counted. Milliseconds are of CPU time, so that other
    processes on the machine matter little.
    """
    began = time.monotonic()
    meter = OtherCpuMeter()
    model = model_shape(LARGE_MODEL)
    measured: list[RouteTiming] = []
    for size in SIZES:
        with console.status(f"{size} nodes"):
            rng = Random(seed)
            measured += measure(rng, cluster(rng, size, model), model.layers, calls)
    show(measured)
    write_results(
        {"choices": [{"what": t.what, "nodes": t.nodes, "ms": t.milliseconds} for t in measured]},
        other_cpu=[meter.read()],
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
