"""A thousand nodes that come, beat and go: `python -m benchmarks.scale --help`."""

import asyncio
import base64
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Annotated

import httpx
import psutil
import typer
from redis.asyncio import Redis
from rich.table import Table

from benchmarks.common.machine import OthersMeter, tree_seconds
from benchmarks.common.output import close, console, refusals_shown
from benchmarks.simulated.heartbeats import Crowd
from market.migrations import upgrade
from market.nodes import live_lookup
from mesh import redis_keys
from stack.processes import Processes
from stack.servers import (
    Postgres,
    StackError,
    free_port,
    gateway_command,
    redis_command,
    wait_for_redis,
)

MODEL_ID = "far/pydoc-llama"
MODEL = Path(__file__).parent.parent / "demo" / "model"
LAYERS = 6
DATABASE = "scale"

AT_ONCE = 32
"""Nodes that register at the same time."""

LOOK = 1.0
"""Seconds between looks at who is on the routes: how exact a removal's time is."""

LISTINGS = 20
START_LIMIT = 60.0
MAX_NODES, MAX_SECONDS = 5000, 3600


@dataclass(frozen=True, slots=True)
class Load:
    """How many nodes, for how many seconds, beating how often; off the routes ``ttl`` seconds
    after the last beat. ``churn``: the share of them that leaves in a minute."""

    nodes: int
    seconds: float
    interval: float
    ttl: float
    churn: float
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """Of one run. Milliseconds where the name says so; ``removals_s``: from a silent node's last
    answered beat until the routes do not have it any more."""

    registrations_per_second: float = 0.0
    registrations_ms: list[float] = field(default_factory=list)
    beats_ms: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    fell_off: int = 0
    joined: int = 0
    farewells: int = 0
    silences: int = 0
    removals_s: list[float] = field(default_factory=list)
    overdue: int = 0
    active: int = 0
    bytes_a_node: float = 0.0
    record_bytes: float = 0.0
    transactions_a_beat: float = 0.0
    api_cores: float = 0.0
    listing_ms: list[float] = field(default_factory=list)
    listing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Servers:
    api_url: str
    redis_url: str
    postgres: Postgres
    api: psutil.Process


@contextmanager
def servers(load: Load) -> Iterator[Servers]:
    """Redis, Postgres and the gateway, each a real one.

    Raises:
        StackError: one of them does not start.
    """
    with tempfile.TemporaryDirectory(prefix="far-scale-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        postgres = Postgres(folder / "postgres")
        postgres.start()
        processes = Processes(folder)
        try:
            postgres.execute(f"CREATE DATABASE {DATABASE}")
            asyncio.run(upgrade(postgres.url(DATABASE)))
            redis_port, api_port = free_port(), free_port()
            processes.start("redis", redis_command(redis_port, folder), {})
            wait_for_redis(redis_port)
            redis_url = f"redis://127.0.0.1:{redis_port}/0"
            environment = _environment(load, postgres.url(DATABASE), redis_url)
            child = processes.start_python("api", gateway_command(api_port), environment)
            url = f"http://127.0.0.1:{api_port}"
            _wait_for_api(url, processes)
            yield Servers(url, redis_url, postgres, psutil.Process(child.process.pid))
        except Exception:
            for child in processes.children.values():
                console.print(child.tail(), soft_wrap=True, markup=False)
            raise
        finally:
            processes.stop(last=("redis",))
            postgres.stop()


def _environment(load: Load, database_url: str, redis_url: str) -> dict[str, str]:
    offer = {"id": MODEL_ID, "path": str(MODEL), "payment_per_token": "0.0001"}
    return {
        "FAR_CONFIG": os.devnull,
        "FAR_DATABASE_URL": database_url,
        "FAR_REDIS_URL": redis_url,
        "FAR_MODELS": json.dumps([offer]),
        "FAR_AUTH__JWT_SECRET": "a secret for this benchmark, long enough",
        "FAR_GENERATION__PROMPT_KEY": base64.b64encode(bytes(32)).decode(),
        "FAR_DISCOVERY__HEALTH_CHECK_INTERVAL": str(load.interval),
        "FAR_DISCOVERY__NODE_TTL": str(load.ttl),
        "FAR_DISCOVERY__ROW_INTERVAL": str(load.ttl),
        "FAR_LIMITS__TRUST_FORWARDED_FOR": "true",
    }


def _wait_for_api(url: str, processes: Processes) -> None:
    give_up = time.monotonic() + START_LIMIT
    while True:
        processes.check()
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > give_up:
            raise StackError(f"The gateway does not answer after {START_LIMIT:.0f} s.")
        time.sleep(0.1)


async def run(load: Load, on: Servers) -> Outcome:
    """The nodes' lives, on servers that run."""
    rng = Random(load.seed)
    redis = Redis.from_url(on.redis_url)
    crowd = Crowd(on.api_url, MODEL_ID, LAYERS, rng)
    outcome = Outcome()
    try:
        empty = (await redis.info("memory"))["used_memory"]
        await _fill(crowd, load, outcome)
        full = (await redis.info("memory"))["used_memory"]
        outcome.bytes_a_node = (full - empty) / load.nodes
        outcome.record_bytes = await _record_bytes(redis, crowd)
        await _steady(crowd, load, outcome, redis, on, rng)
        for _ in range(LISTINGS):
            milliseconds, outcome.listing_bytes = await crowd.listing()
            outcome.listing_ms.append(milliseconds)
    finally:
        await crowd.close()
        await redis.aclose()
    tally = crowd.tally
    outcome.registrations_ms, outcome.beats_ms = tally.registrations_ms, tally.beats_ms
    outcome.lost, outcome.joined = tally.lost, tally.joined
    outcome.farewells, outcome.silences = tally.farewells, tally.silences
    return outcome


async def _fill(crowd: Crowd, load: Load, outcome: Outcome) -> None:
    """All at once, as after an outage of ours."""
    nodes = [crowd.invent() for _ in range(load.nodes)]
    began = time.monotonic()

    waiting = iter(nodes)

    async def join_some() -> None:
        for node in waiting:
            await crowd.join(node, load.interval)

    await asyncio.gather(*(join_some() for _ in range(AT_ONCE)))
    outcome.registrations_per_second = load.nodes / (time.monotonic() - began)


async def _record_bytes(redis: Redis, crowd: Crowd) -> float:
    sizes = [await redis.memory_usage(redis_keys.node(node.node_id)) for node in crowd.live[:50]]
    return sum(filter(None, sizes)) / len(sizes)


async def _steady(
    crowd: Crowd, load: Load, outcome: Outcome, redis: Redis, on: Servers, rng: Random
) -> None:
    """Beats, and now and then a node that leaves and one that comes: the same again, or another."""
    sent, cpu = len(crowd.tally.beats_ms), tree_seconds(on.api)
    transactions = _transactions(on.postgres)
    looks = 0
    began = time.monotonic()
    next_change = began
    gone = []
    while (now := time.monotonic()) < began + load.seconds:
        if load.churn and now >= next_change and crowd.live:
            next_change = now + rng.expovariate(load.nodes * load.churn / 60)
            node = rng.choice(crowd.live)
            crowd.leave(node, silently=rng.random() < 0.5)
            gone.append(node)
            comes_back = rng.random() < 0.5
            newcomer = gone.pop(rng.randrange(len(gone))) if comes_back else crowd.invent()
            await crowd.join(newcomer, load.interval)
        if now >= began + looks * LOOK:
            looks += 1
            await _look(crowd, load, outcome, redis)
        await asyncio.sleep(LOOK / 10)
    took = time.monotonic() - began
    beats = max(1, len(crowd.tally.beats_ms) - sent)
    outcome.transactions_a_beat = (_transactions(on.postgres) - transactions) / beats
    outcome.api_cores = (tree_seconds(on.api) - cpu) / took


async def _look(crowd: Crowd, load: Load, outcome: Outcome, redis: Redis) -> None:
    """Who is on the routes, as a route's choice reads it."""
    active = {node.node_id for node in await live_lookup.available_nodes(redis, MODEL_ID)}
    now = time.monotonic()
    outcome.active = len(active)
    outcome.fell_off += len(crowd.missing(active))
    for node_id, since in list(crowd.silent.items()):
        if node_id not in active:
            outcome.removals_s.append(now - since)
            del crowd.silent[node_id]
        elif now - since > load.ttl + 2 * LOOK + 1:
            outcome.overdue += 1


def _transactions(postgres: Postgres) -> int:
    query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    return int(postgres.rows(query, database=DATABASE)[0])


def show(load: Load, outcome: Outcome) -> None:
    title = (
        f"{load.nodes} nodes for {load.seconds:.0f} s, a heartbeat every {load.interval:g} s, "
        f"time to live {load.ttl:g} s"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("figure", justify="right")
    rows = {
        "heartbeats answered": f"{len(outcome.beats_ms)}",
        "heartbeats lost": f"{len(outcome.lost)}",
        "heartbeat, ms: p50 / p99": _percentiles(outcome.beats_ms),
        "registrations a second, all at once": f"{outcome.registrations_per_second:.0f}",
        "registration, ms: p50 / p99": _percentiles(outcome.registrations_ms),
        "joins, farewells, silences": f"{outcome.joined}, {outcome.farewells}, {outcome.silences}",
        "looks at which a beating node was missing": f"{outcome.fell_off}",
        "silence until off the routes, s: p50 / max": (
            f"{median(outcome.removals_s):.1f} / {max(outcome.removals_s):.1f} "
            f"({len(outcome.removals_s)} nodes)"
            if outcome.removals_s
            else "-"
        ),
        "looks at which a silent node was overdue": f"{outcome.overdue}",
        "Redis memory a node, bytes (of that its record)": (
            f"{outcome.bytes_a_node:.0f} ({outcome.record_bytes:.0f})"
        ),
        "API, cores": f"{outcome.api_cores:.2f}",
        "Postgres transactions a heartbeat": f"{outcome.transactions_a_beat:.2f}",
        f"list of {outcome.active} nodes, ms: p50 / p99": _percentiles(outcome.listing_ms),
        "list, kB": f"{outcome.listing_bytes / 1000:.0f}",
    }
    for what, figure in rows.items():
        table.add_row(what, figure)
    console.print(table)
    for reason in sorted(set(outcome.lost)):
        console.print(f"lost: {outcome.lost.count(reason)} x {reason}", soft_wrap=True)


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
    """Let many nodes register, beat and leave, on a real gateway, Redis and Postgres.

    A node is a wallet that signs, a device and an address; it has no model. Nodes leave at random,
    half of them without a word, and for each that leaves another comes: one that was there before,
    or a new one. Every second the routes' view of them is compared with who beats.
    """
    began = time.monotonic()
    load = Load(nodes, seconds, interval, ttl, churn, seed)
    with refusals_shown(), servers(load) as on:
        meter = OthersMeter()
        with console.status(f"{nodes} nodes, {seconds:.0f} s"):
            outcome = asyncio.run(run(load, on))
        others = meter.read()
    show(load, outcome)
    close(
        {"load": asdict(load), "outcome": asdict(outcome)},
        others=[others],
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
