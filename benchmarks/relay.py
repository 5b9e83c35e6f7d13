"""A hop by Redis and by the relay: `python -m benchmarks.relay --help`."""

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
from benchmarks.common.machine import OthersMeter, tree_seconds
from benchmarks.common.output import at_work, close, console, spread
from benchmarks.running import network
from benchmarks.running.user import User
from benchmarks.simulated import echo_nodes
from benchmarks.simulated.echo_nodes import Bounced
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

SIDES = ("Redis", "relay")
NODES = 3
NEW_TOKENS = 64
PROMPT = 16
SIMULATED = (1, 8, 64)
BOUNCE = 4.0
"""Seconds of each measurement with simulated nodes."""

SETTINGS = {
    "FAR_LIMITS__REGISTRATIONS_PER_IP": "100000/hour",
    "FAR_LIMITS__LOGINS_PER_IP": "100000/hour",
}


@dataclass(frozen=True, slots=True)
class Hops:
    """Simulated nodes. Milliseconds a hop, steps a second of all together, and the cores that the
    relay's process, Redis and the simulation used."""

    side: str
    nodes: int
    middle: float
    tail: float
    rate: float
    relay: float
    redis: float
    simulation: float


@dataclass(frozen=True, slots=True)
class Tokens:
    """Real nodes: one stream, tokens a second after the first."""

    side: str
    rate: float
    same: bool


@dataclass(slots=True)
class Measured:
    hops: list[Hops] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    others: list[float] = field(default_factory=list)


class Mesh:
    """Two meshes of real nodes; the relay of the second also serves the simulated ones."""

    def __init__(
        self, model: BenchModel, by_redis: DevelopmentStack, by_relay: DevelopmentStack
    ) -> None:
        self._model = model
        self._users = {
            side: User(stack) for side, stack in zip(SIDES, (by_redis, by_relay), strict=True)
        }
        self._stack = by_relay
        self._members = echo_nodes.register(
            by_relay.plan.api_url, by_relay.plan.model_id, 2 * max(SIMULATED)
        )
        self._watched = {
            name: psutil.Process(by_relay.processes.children[name].process.pid)
            for name in ("api", "redis")
        }

    def tokens(self, number: int) -> list[Tokens]:
        """The same prompt on both sides."""
        prompt = self._model.prompt(PROMPT, number)
        served = {side: user.generate([prompt], NEW_TOKENS) for side, user in self._users.items()}
        same = len({tuple(each.token_ids[0]) for each in served.values()}) == 1
        return [Tokens(side, each.pipeline.decoding, same) for side, each in served.items()]

    def hops(self, side: str, nodes: int) -> Hops:
        plan = self._stack.plan
        url = plan.api_url if side == "relay" else None
        before = self._cpu()
        bounced: Bounced = asyncio.run(
            echo_nodes.bounce(plan.redis_url, url, self._members[: 2 * nodes], BOUNCE)
        )
        relay, redis, simulation = (
            (now - then) / bounced.seconds for now, then in zip(self._cpu(), before, strict=True)
        )
        return Hops(
            side=side,
            nodes=nodes,
            middle=bounced.at(0.5),
            tail=bounced.at(0.99),
            rate=bounced.rate,
            relay=relay,
            redis=redis,
            simulation=simulation,
        )

    def _cpu(self) -> list[float]:
        return [
            *(tree_seconds(process) for process in self._watched.values()),
            time.process_time(),
        ]


def measure(model: BenchModel, rounds: int, folder: Path, say: Callable[[str], None]) -> Measured:
    measured = Measured()
    say("starting two meshes")
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
        mesh = Mesh(model, by_redis, by_relay)
        mesh.tokens(0)  # whatever happens once
        roots = (network.postmaster(by_redis), network.postmaster(by_relay))
        for number in range(1, rounds + 1):
            meter = OthersMeter(*roots)
            say(f"round {number} of {rounds}: real nodes")
            measured.tokens += mesh.tokens(number)
            for nodes in SIMULATED:
                for side in SIDES:
                    say(f"round {number} of {rounds}: {nodes} simulated, by {side}")
                    measured.hops.append(mesh.hops(side, nodes))
            measured.others.append(meter.read())
    return measured


def show(measured: Measured, model: BenchModel, rounds: int) -> None:
    table = Table(
        title=f"{model.name}: {model.title}\n{NODES} real nodes, one stream of {NEW_TOKENS} "
        f"tokens, no guesses; medians of {rounds}",
        title_justify="left",
    )
    for column in ("by", "tokens/s", "ms a token", "same tokens"):
        table.add_column(column, justify="right")
    for side in SIDES:
        runs = [run for run in measured.tokens if run.side == side]
        table.add_row(
            side,
            spread([run.rate for run in runs], 1, bold=True),
            f"{1000 / median(run.rate for run in runs):.1f}",
            f"{sum(run.same for run in runs)} of {len(runs)}",
        )
    console.print(table)
    table = Table(
        title=f"Simulated nodes, each with an edge that sends it one row of {echo_nodes.WIDTH} "
        f"values in 16 bits at a time; medians of {rounds} times {BOUNCE:.0f} s",
        title_justify="left",
    )
    for column in ("nodes", "by", "hop, ms", "p99, ms", "steps/s"):
        table.add_column(column, justify="right")
    for column in ("relay, cores", "Redis, cores", "simulation, cores"):
        table.add_column(column, justify="right")
    for nodes in SIMULATED:
        for side in SIDES:
            runs = [run for run in measured.hops if (run.side, run.nodes) == (side, nodes)]
            table.add_row(
                str(nodes),
                side,
                spread([run.middle for run in runs], 2, bold=True),
                f"{median(run.tail for run in runs):.2f}",
                spread([run.rate for run in runs], bold=True),
                *(
                    f"{median(getattr(run, name) for run in runs):.2f}"
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
    turn. Simulated nodes, without torch, then bounce steps: 1, 8 and 64, each with an edge of its
    own; first by Redis, then by the relay. All is on one machine, without TLS and without a network
    between: so a hop is what the software costs.
    """
    began = time.monotonic()
    name = model.upper()
    if name not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with at_work() as (folder, say):
        made = models.make(name, DEMO_MODEL, folder / "model")
        measured = measure(made, rounds, folder, say)
    show(measured, made, rounds)
    measurements = {
        "model": made.title,
        "tokens": [asdict(run) for run in measured.tokens],
        "hops": [asdict(run) for run in measured.hops],
    }
    close(measurements, others=measured.others, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
