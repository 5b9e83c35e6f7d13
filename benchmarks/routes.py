"""How long a route takes to choose: `python -m benchmarks.routes --help`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.common.machine import OthersMeter
from benchmarks.common.output import close, console
from benchmarks.simulated.clusters import LARGE_MODEL, SESSIONS, TOKENS, draw, model_shape
from market.geo.distance import Coordinates
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.placement.solver import ModelShape, place
from market.routing.request import RouteRequest
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
"""Where nodes and users are, some degrees around."""

POSITIONS = 1024
"""Of a generation."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds of CPU time of each choice, how many found a route, and its hops."""

    what: str
    nodes: int
    milliseconds: list[float]
    found: int
    hops: float


def cluster(rng: Random, count: int, model: ModelShape) -> list[LiveNode]:
    """Nodes as the registry knows them, with the spans that placement gives them; queues, hops and
    places at random."""
    candidates = [device.node for device in draw(rng, count, LARGE_MODEL, trusted=0.3)]
    live = []
    by_id = {candidate.node_id: candidate for candidate in candidates}
    for node_id, span in sorted(place(candidates, model).spans.items()):
        place_known = near(rng) if rng.random() < 0.9 else None
        node = Node(
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
            latitude=place_known.latitude if place_known else None,
            longitude=place_known.longitude if place_known else None,
        )
        live.append(LiveNode(node, cooling_down=False))
    return live


def near(rng: Random) -> Coordinates:
    latitude, longitude = rng.choice(CITIES)
    return Coordinates(latitude + rng.uniform(-5, 5), longitude + rng.uniform(-5, 5))


def measure(rng: Random, live: Sequence[LiveNode], layers: int, calls: int) -> list[Timed]:
    """Choices for one user after another: of all nodes; with free KV that changes; and near him."""

    def anybody() -> RouteRequest:
        return RouteRequest(layers)

    def with_free_kv() -> RouteRequest:
        free_kv = {each.node.node_id: rng.randrange(SESSIONS * TOKENS) for each in live}
        return RouteRequest(layers, positions=POSITIONS, free_kv=free_kv)

    def close_by() -> RouteRequest:
        return replace(with_free_kv(), near=near(rng))

    def timed(what: str, request_of: Callable[[], RouteRequest], *, explain: bool = False) -> Timed:
        milliseconds, hops = [], []
        for _ in range(calls):
            request = request_of()
            began = time.thread_time()
            route = cheapest_route(live, request)
            if explain:
                began = time.thread_time()
                explain_skips(live, request, route or [])
            milliseconds.append(1000 * (time.thread_time() - began))
            if route is not None:
                hops.append(len(route))
        return Timed(what, len(live), milliseconds, len(hops), median(hops or [0]))

    return [
        timed("all", anybody),
        timed("with free KV", with_free_kv),
        timed("with free KV, near the user", close_by),
        timed("why not the others, after it", with_free_kv, explain=True),
    ]


def show(measured: Sequence[Timed]) -> None:
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

    All: the cheapest path by steps, hops and queues. With free KV: only nodes with 1,024 free KV
    positions, where each has as many as chance gives it. Near the user: within 1,000 km of a user
    somewhere, then 2,000 and so on, and at last anywhere; a tenth of the nodes say not where they
    are. Reading the registry is not counted. Milliseconds are of CPU time, so that who else uses
    the machine matters little.
    """
    began = time.monotonic()
    meter = OthersMeter()
    model = model_shape(LARGE_MODEL)
    measured: list[Timed] = []
    for size in SIZES:
        with console.status(f"{size} nodes"):
            rng = Random(seed)
            measured += measure(rng, cluster(rng, size, model), model.layers, calls)
    show(measured)
    close(
        {"choices": [{"what": t.what, "nodes": t.nodes, "ms": t.milliseconds} for t in measured]},
        others=[meter.read()],
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
