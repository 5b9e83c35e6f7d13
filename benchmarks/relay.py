"""The cost of a hop by Redis and by the relay: `python -m benchmarks.relay --help`."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OtherCpuMeter, tree_seconds
from benchmarks.common.output import console, spread, workspace, write_results
from benchmarks.running import network
from benchmarks.running.user import User
from benchmarks.simulated import echo_nodes
from benchmarks.simulated.echo_nodes import EchoResult
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

SIDES = ("Redis", "relay")
NODES = 3
NEW_TOKENS = 64
PROMPT = 16
SIMULATED = (1, 8, 64)
ECHO_SECONDS = 4.0
"""Seconds of each measurement with simulated nodes."""

SETTINGS = {
    "FAR_LIMITS__REGISTRATIONS_PER_IP": "100000/hour",
    "FAR_LIMITS__BODIES_PER_IP": "100000/hour",
    "FAR_LIMITS__LOGINS_PER_IP": "100000/hour",
}


@dataclass(frozen=True, slots=True)
class HopMeasurement:
    """One measurement of simulated nodes: milliseconds a hop (median and 99th percentile), steps a
    second of all nodes, and the cores that the relay's process, Redis and the simulation used."""

    side: str
    nodes: int
    middle: float
    tail: float
    rate: float
    relay: float
    redis: float
    simulation: float


@dataclass(frozen=True, slots=True)
class StreamMeasurement:
    """One stream through real nodes, in tokens a second after the first. ``same``: whether both
    sides gave the same tokens."""

    side: str
    rate: float
    same: bool


@dataclass(slots=True)
class RelayResults:
    hops: list[HopMeasurement] = field(default_factory=list)
    tokens: list[StreamMeasurement] = field(default_factory=list)
    other_cpu: list[float] = field(default_factory=list)


class RelayComparison:
    """Two meshes of real nodes; the relay of the second also serves the simulated ones."""

    def __init__(
        self, model: BenchModel, by_redis: DevelopmentStack, by_relay: DevelopmentStack
    ) -> None:
        self._model = model
        self._users = {
            side: User(stack) for side, stack in zip(SIDES, (by_redis, by_relay), strict=True)
        }
        self._stack = by_relay
        self._echo_nodes = echo_nodes.register(
            by_relay.plan.api_url, by_relay.plan.model_id, 2 * max(SIMULATED)
        )
        self._watched = {
            name: psutil.Process(by_relay.processes.children[name].process.pid)
            for name in ("api", "redis")
        }

    def tokens(self, number: int) -> list[StreamMeasurement]:
        """The same prompt on both sides."""
        prompt = self._model.prompt(PROMPT, number)
        served = {side: user.generate([prompt], NEW_TOKENS) for side, user in self._users.items()}
        same = len({tuple(each.token_ids[0]) for each in served.values()}) == 1
        return [
            StreamMeasurement(side, each.pipeline.decoding, same) for side, each in served.items()
        ]

    def hops(self, side: str, nodes: int) -> HopMeasurement:
        plan = self._stack.plan
        url = plan.api_url if side == "relay" else None
        before = self._cpu()
        echoed: EchoResult = asyncio.run(
            echo_nodes.run_echo(plan.redis_url, url, self._echo_nodes[: 2 * nodes], ECHO_SECONDS)
        )
        relay, redis, simulation = (
            (now - then) / echoed.seconds for now, then in zip(self._cpu(), before, strict=True)
        )
        return HopMeasurement(
            side=side,
            nodes=nodes,
            middle=echoed.at(0.5),
            tail=echoed.at(0.99),
            rate=echoed.rate,
            relay=relay,
            redis=redis,
            simulation=simulation,
        )

    def _cpu(self) -> list[float]:
        return [
            *(tree_seconds(process) for process in self._watched.values()),
            time.process_time(),
        ]


def measure(
    model: BenchModel, rounds: int, folder: Path, report_progress: Callable[[str], None]
) -> RelayResults:
    results = RelayResults()
    report_progress("starting two meshes")
    plans = [
        network.plan(
            model,
            folder / side,
            nodes=NODES,
            node_options=("--no-speculate", *options),
            settings=SETTINGS,
        )
        for side, options in zip(SIDES, ((), ("--redis", "")), strict=True)
    ]
    with DevelopmentStack(plans[0]) as by_redis, DevelopmentStack(plans[1]) as by_relay:
        comparison = RelayComparison(model, by_redis, by_relay)
        comparison.tokens(0)  # whatever happens once
        roots = (network.postmaster(by_redis), network.postmaster(by_relay))
        for number in range(1, rounds + 1):
            meter = OtherCpuMeter(*roots)
            report_progress(f"round {number} of {rounds}: real nodes")
            results.tokens += comparison.tokens(number)
            for nodes in SIMULATED:
                for side in SIDES:
                    report_progress(f"round {number} of {rounds}: {nodes} simulated, by {side}")
                    results.hops.append(comparison.hops(side, nodes))
            results.other_cpu.append(meter.read())
    return results


def show(results: RelayResults, model: BenchModel, rounds: int) -> None:
    table = Table(
        title=f"{model.name}: {model.title}\n{NODES} real nodes, one stream of {NEW_TOKENS} "
        f"tokens, no draft tokens; medians of {rounds}",
        title_justify="left",
    )
    for column in ("by", "tokens/s", "ms a token", "same tokens"):
        table.add_column(column, justify="right")
    for side in SIDES:
        runs = [run for run in results.tokens if run.side == side]
        table.add_row(
            side,
            spread([run.rate for run in runs], 1, bold=True),
            f"{1000 / median(run.rate for run in runs):.1f}",
            f"{sum(run.same for run in runs)} of {len(runs)}",
        )
    console.print(table)
    table = Table(
        title=f"Simulated nodes, each with an edge that sends it one row of {echo_nodes.WIDTH} "
        f"values in 16 bits at a time; medians of {rounds} times {ECHO_SECONDS:.0f} s",
        title_justify="left",
    )
    for column in ("nodes", "by", "hop, ms", "p99, ms", "steps/s"):
        table.add_column(column, justify="right")
    for column in ("relay, cores", "Redis, cores", "simulation, cores"):
        table.add_column(column, justify="right")
    for nodes in SIMULATED:
        for side in SIDES:
            hops = [hop for hop in results.hops if (hop.side, hop.nodes) == (side, nodes)]
            table.add_row(
                str(nodes),
                side,
                spread([hop.middle for hop in hops], 2, bold=True),
                f"{median(hop.tail for hop in hops):.2f}",
                spread([hop.rate for hop in hops], bold=True),
                *(
                    f"{median(getattr(hop, name) for hop in hops):.2f}"
                    for name in ("relay", "redis", "simulation")
                ),
            )
    console.print(table)
    console.print(
        "A hop: half of the way from an edge to its node and back. The simulation is one process; "
        "where it uses a whole core, it is what is slow, and not what it measures."
    )


def main(
    model: Annotated[str, typer.Option(help="S, M or L.")] = "S",
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each kind.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure what a hop costs by Redis and by the relay, and how many steps one relay carries.

    Two meshes of three real nodes, one by Redis and one by its relay, answer the same prompts in
    turn. Simulated nodes, without torch, then echo steps: 1, 8 and 64, each with an edge of its
    own; first by Redis, then by the relay. All is on one machine, without TLS and without a network
    between: so a hop is what the software costs.
    """
    began = time.monotonic()
    name = model.upper()
    if name not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with workspace() as (folder, report_progress):
        made = models.make(name, DEMO_MODEL, folder / "model")
        results = measure(made, rounds, folder, report_progress)
    show(results, made, rounds)
    measurements = {
        "model": made.title,
        "tokens": [asdict(run) for run in results.tokens],
        "hops": [asdict(run) for run in results.hops],
    }
    write_results(measurements, other_cpu=results.other_cpu, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
