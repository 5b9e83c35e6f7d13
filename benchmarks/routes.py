"""How long a route takes to choose: `python -m benchmarks.routes --help`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def swarm(rng: Random, count: int, model: ModelShape) -> list[Node]:
    """Nodes as the registry knows them, with the spans that placement gives them; queues, hops and
    places at random."""
    candidates = [device.node for device in draw(rng, count, LARGE_MODEL, trusted=0.3)]
    nodes = []
    by_id = {candidate.node_id: candidate for candidate in candidates}
    for node_id, span in sorted(place(candidates, model).spans.items()):
        place_known = near(rng) if rng.random() < 0.9 else None
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
                latitude=place_known.latitude if place_known else None,
                longitude=place_known.longitude if place_known else None,
            )
        )
    return nodes


def near(rng: Random) -> Coordinates:
    latitude, longitude = rng.choice(CITIES)
    return Coordinates(latitude + rng.uniform(-5, 5), longitude + rng.uniform(-5, 5))


def measure(rng: Random, nodes: Sequence[Node], layers: int, calls: int) -> list[Timed]:
    """Choices for one user after another: of all nodes; with KV room that changes; and near him."""
    everything = {node.node_id: SESSIONS * TOKENS for node in nodes}

    def rooms() -> dict[str, int]:
        return {name: rng.randrange(most) for name, most in everything.items()}

    def timed(what: str, ask: Callable[[], Callable[[], list[Node] | None]]) -> Timed:
        milliseconds, routes = [], []
        for _ in range(calls):
            call = ask()
            began = time.thread_time()
            route = call()
            milliseconds.append(1000 * (time.thread_time() - began))
            if route is not None:
                routes.append(len(route))
        return Timed(what, len(nodes), milliseconds, len(routes), median(routes or [0]))

    def anybody() -> Callable[[], list[Node] | None]:
        return lambda: cheapest_route(nodes, layers)

    def with_room() -> Callable[[], list[Node] | None]:
        free = rooms()
        return lambda: cheapest_route(nodes, layers, positions=POSITIONS, rooms=free)

    def close_by() -> Callable[[], list[Node] | None]:
        free, here = rooms(), near(rng)
        return lambda: cheapest_route(nodes, layers, positions=POSITIONS, rooms=free, near=here)

    def explained() -> Callable[[], list[Node] | None]:
        free = rooms()
        route = cheapest_route(nodes, layers, positions=POSITIONS, rooms=free)
        live = [LiveNode(node, cooling_down=False) for node in nodes]

        def explain_it() -> list[Node] | None:
            explain_skips(live, layers, route or [], positions=POSITIONS, rooms=free)
            return route

        return explain_it

    return [
        timed("all", anybody),
        timed("with room", with_room),
        timed("with room, near the user", close_by),
        timed("why not the others, after it", explained),
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
    """Choose routes through swarms of 10, 100 and 1,000 nodes that were placed for a model of 80
    layers.

    All: the cheapest path by steps, hops and queues. With room: only nodes with KV room for 1,024
    positions, where each has as much as chance gives it. Near the user: within 1,000 km of a user
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
            measured += measure(rng, swarm(rng, size, model), model.layers, calls)
    show(measured)
    close(
        {"choices": [{"what": t.what, "nodes": t.nodes, "ms": t.milliseconds} for t in measured]},
        others=[meter.read()],
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
