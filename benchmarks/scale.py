"""Load test of a thousand nodes' heartbeats: `python -m benchmarks.scale --help`."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Annotated

import typer
from redis.asyncio import Redis
from rich.table import Table

from benchmarks.common.machine import OtherCpuMeter, tree_seconds
from benchmarks.common.output import console, exit_on_stack_error, write_results
from benchmarks.running.gateway import DATABASE, MODEL_ID, GatewayServers, gateway_servers
from benchmarks.simulated.heartbeats import NodeFleet
from market.nodes import live_lookup
from mesh import redis_keys
from stack.servers import Postgres

LAYERS = 6

REGISTERING_AT_ONCE = 32
"""Nodes that register at the same time."""

POLL_SECONDS = 1.0
"""Seconds between polls of the nodes on the routes: how exact a removal's time is."""

LISTINGS = 20
MAX_NODES, MAX_SECONDS = 5000, 3600


@dataclass(frozen=True, slots=True)
class FleetLoad:
    """How many nodes, for how many seconds, with a heartbeat each ``interval`` seconds; off the
    routes ``ttl`` seconds after the last one. ``churn``: the share that leaves in a minute."""

    nodes: int
    seconds: float
    interval: float
    ttl: float
    churn: float
    seed: int = 1


@dataclass(slots=True)
class FleetResult:
    """Figures of one run. ``missing``, ``overdue``: polls at which a live node was not on the
    routes, or a silent one still was; ``removals_s``: seconds from a silent node's last answered
    heartbeat until it is off the routes."""

    registrations_per_second: float = 0.0
    registrations_ms: list[float] = field(default_factory=list)
    heartbeats_ms: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    missing: int = 0
    joined: int = 0
    departures: int = 0
    silences: int = 0
    removals_s: list[float] = field(default_factory=list)
    overdue: int = 0
    active: int = 0
    bytes_a_node: float = 0.0
    record_bytes: float = 0.0
    transactions_per_heartbeat: float = 0.0
    api_cores: float = 0.0
    listing_ms: list[float] = field(default_factory=list)
    listing_bytes: int = 0


@contextmanager
def servers(load: FleetLoad) -> Iterator[GatewayServers]:
    """Redis, Postgres and the gateway, each a real one.

    Raises:
        StackError: one of them does not start.
    """
    settings = {
        "FAR_DISCOVERY__HEALTH_CHECK_INTERVAL": str(load.interval),
        "FAR_DISCOVERY__NODE_TTL": str(load.ttl),
        "FAR_DISCOVERY__ROW_INTERVAL": str(load.ttl),
        "FAR_LIMITS__TRUST_FORWARDED_FOR": "true",
    }
    with gateway_servers(settings) as made:
        yield made


async def run(load: FleetLoad, on: GatewayServers) -> FleetResult:
    """Run the load on running servers."""
    rng = Random(load.seed)
    redis = Redis.from_url(on.redis_url)
    fleet = NodeFleet(on.api_url, MODEL_ID, LAYERS, rng)
    result = FleetResult()
    try:
        empty = (await redis.info("memory"))["used_memory"]
        await _register_all(fleet, load, result)
        full = (await redis.info("memory"))["used_memory"]
        result.bytes_a_node = (full - empty) / load.nodes
        result.record_bytes = await _record_bytes(redis, fleet)
        await _run_churn(fleet, load, result, redis, on, rng)
        for _ in range(LISTINGS):
            milliseconds, result.listing_bytes = await fleet.listing()
            result.listing_ms.append(milliseconds)
    finally:
        await fleet.close()
        await redis.aclose()
    counts = fleet.counts
    result.registrations_ms, result.heartbeats_ms = counts.registrations_ms, counts.heartbeats_ms
    result.lost, result.joined = counts.lost, counts.joined
    result.departures, result.silences = counts.departures, counts.silences
    return result


async def _register_all(fleet: NodeFleet, load: FleetLoad, result: FleetResult) -> None:
    """Register all nodes at once, as after an outage of the gateway."""
    nodes = [fleet.new_node() for _ in range(load.nodes)]
    began = time.monotonic()

    waiting = iter(nodes)

    async def join_some() -> None:
        for node in waiting:
            await fleet.join(node, load.interval)

    await asyncio.gather(*(join_some() for _ in range(REGISTERING_AT_ONCE)))
    result.registrations_per_second = load.nodes / (time.monotonic() - began)


async def _record_bytes(redis: Redis, fleet: NodeFleet) -> float:
    sizes = [await redis.memory_usage(redis_keys.node(node.node_id)) for node in fleet.live[:50]]
    return sum(filter(None, sizes)) / len(sizes)


async def _run_churn(
    fleet: NodeFleet,
    load: FleetLoad,
    result: FleetResult,
    redis: Redis,
    on: GatewayServers,
    rng: Random,
) -> None:
    """Heartbeats for the load's seconds, while nodes leave at random and for each another joins:
    one that was registered before, or a new one."""
    sent, cpu = len(fleet.counts.heartbeats_ms), tree_seconds(on.api)
    transactions = _transactions(on.postgres)
    polls = 0
    began = time.monotonic()
    next_change = began
    departed = []
    while (now := time.monotonic()) < began + load.seconds:
        if load.churn and now >= next_change and fleet.live:
            next_change = now + rng.expovariate(load.nodes * load.churn / 60)
            node = rng.choice(fleet.live)
            fleet.leave(node, silently=rng.random() < 0.5)
            departed.append(node)
            comes_back = rng.random() < 0.5
            newcomer = (
                departed.pop(rng.randrange(len(departed))) if comes_back else fleet.new_node()
            )
            await fleet.join(newcomer, load.interval)
        if now >= began + polls * POLL_SECONDS:
            polls += 1
            await _poll_routes(fleet, load, result, redis)
        await asyncio.sleep(POLL_SECONDS / 10)
    took = time.monotonic() - began
    heartbeats = max(1, len(fleet.counts.heartbeats_ms) - sent)
    result.transactions_per_heartbeat = (_transactions(on.postgres) - transactions) / heartbeats
    result.api_cores = (tree_seconds(on.api) - cpu) / took


async def _poll_routes(
    fleet: NodeFleet, load: FleetLoad, result: FleetResult, redis: Redis
) -> None:
    """Compare the nodes on the routes, as routing reads them, with those that send heartbeats."""
    active = {node.node_id for node in await live_lookup.available_nodes(redis, MODEL_ID)}
    now = time.monotonic()
    result.active = len(active)
    result.missing += len(fleet.missing(active))
    for node_id, since in list(fleet.silent.items()):
        if node_id not in active:
            result.removals_s.append(now - since)
            del fleet.silent[node_id]
        elif now - since > load.ttl + 2 * POLL_SECONDS + 1:
            result.overdue += 1


def _transactions(postgres: Postgres) -> int:
    query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    return int(postgres.rows(query, database=DATABASE)[0])


def show(load: FleetLoad, result: FleetResult) -> None:
    title = (
        f"{load.nodes} nodes for {load.seconds:.0f} s, a heartbeat every {load.interval:g} s, "
        f"time to live {load.ttl:g} s"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("figure", justify="right")
    rows = {
        "heartbeats answered": f"{len(result.heartbeats_ms)}",
        "heartbeats lost": f"{len(result.lost)}",
        "heartbeat, ms: p50 / p99": _percentiles(result.heartbeats_ms),
        "registrations a second, all at once": f"{result.registrations_per_second:.0f}",
        "registration, ms: p50 / p99": _percentiles(result.registrations_ms),
        "joins, departures, silences": f"{result.joined}, {result.departures}, {result.silences}",
        "polls at which a live node was missing": f"{result.missing}",
        "silence until off the routes, s: p50 / max": (
            f"{median(result.removals_s):.1f} / {max(result.removals_s):.1f} "
            f"({len(result.removals_s)} nodes)"
            if result.removals_s
            else "-"
        ),
        "polls at which a silent node was overdue": f"{result.overdue}",
        "Redis memory a node, bytes (of that its record)": (
            f"{result.bytes_a_node:.0f} ({result.record_bytes:.0f})"
        ),
        "API, cores": f"{result.api_cores:.2f}",
        "Postgres transactions a heartbeat": f"{result.transactions_per_heartbeat:.2f}",
        f"list of {result.active} nodes, ms: p50 / p99": _percentiles(result.listing_ms),
        "list, kB": f"{result.listing_bytes / 1000:.0f}",
    }
    for what, figure in rows.items():
        table.add_row(what, figure)
    console.print(table)
    for reason in sorted(set(result.lost)):
        console.print(f"lost: {result.lost.count(reason)} x {reason}", soft_wrap=True)


def _percentiles(milliseconds: Sequence[float]) -> str:
    if len(milliseconds) < 2:
        return "-"
    return f"{median(milliseconds):.1f} / {quantiles(milliseconds, n=100)[98]:.1f}"


def main(
    nodes: Annotated[int, typer.Option(min=1, max=MAX_NODES, help="Nodes at a time.")] = 1000,
    seconds: Annotated[
        float, typer.Option(min=1, max=MAX_SECONDS, help="How long, once all have joined.")
    ] = 300,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between heartbeats.")] = 30,
    ttl: Annotated[float, typer.Option(min=0.5, help="Seconds until a silent node is off.")] = 120,
    churn: Annotated[
        float, typer.Option(min=0, max=10, help="Share of the nodes that leaves in a minute.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Let many nodes register, send heartbeats and leave, on a real gateway, Redis and Postgres.

    A node is a wallet that signs, a device and an address; it has no model. Nodes leave at random,
    half of them silently, and for each that leaves another comes: one that was there before,
    or a new one. Every second the routes' view of them is compared with those that send heartbeats.
    """
    began = time.monotonic()
    load = FleetLoad(nodes, seconds, interval, ttl, churn, seed)
    with exit_on_stack_error(), servers(load) as on:
        meter = OtherCpuMeter()
        with console.status(f"{nodes} nodes, {seconds:.0f} s"):
            result = asyncio.run(run(load, on))
        other_cpu = meter.read()
    show(load, result)
    write_results(
        {"load": asdict(load), "outcome": asdict(result)},
        other_cpu=[other_cpu],
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
