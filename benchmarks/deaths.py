"""The stall after a node's death: `python -m benchmarks.deaths --help`."""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from redis.asyncio import Redis
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OthersMeter
from benchmarks.common.output import at_work, close, console, spread
from benchmarks.running import network
from benchmarks.running.token_times import Followed, follow, supervised
from benchmarks.running.user import User
from market.placement.solver import even_split
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

NODES = 3
LENGTHS = (16, 512)
BLOW_AFTER = 16
"""Tokens that have arrived when the blow falls."""

NEW_TOKENS = 48
ALLOWED = 1.0
"""Seconds that a stall may last beyond one prefill."""


@dataclass(frozen=True, slots=True)
class Blow:
    """What befalls which node of the route."""

    title: str
    stage: int
    signal: signal.Signals


BLOWS = {
    "middle": Blow("middle killed", 1, signal.SIGKILL),
    "edge": Blow("edge killed", 0, signal.SIGKILL),
    "last": Blow("last killed", 2, signal.SIGKILL),
    "stopped": Blow("middle stopped", 1, signal.SIGSTOP),
}


@dataclass(frozen=True, slots=True)
class Death:
    """Seconds: the longest gap between two tokens, with the blow and of the same generation
    without it; one prefill of as many tokens as there were; how soon the death was noticed.
    ``kept``: nodes that kept their KV cache."""

    gap: float
    undisturbed_gap: float
    prefill: float
    noticed: float
    kept: int
    equal: bool

    @property
    def in_time(self) -> bool:
        return self.gap <= ALLOWED + self.prefill


@dataclass(slots=True)
class Measured:
    """By length of the prompt and blow."""

    deaths: dict[tuple[int, str], list[Death]] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)


class Network:
    """Two nodes for each span. Whoever dies is replaced before the next blow."""

    def __init__(self, stack: DevelopmentStack, model: BenchModel) -> None:
        self._stack = stack
        self._model = model
        self._spans = even_split(stack.model.layers, NODES)
        self._started = 0
        for stage in range(NODES):
            self._start_spare(stage)
        stack.wait_for_nodes(2 * NODES)
        self._user = User(stack)

    def prefill(self, length: int, number: int) -> float:
        """Seconds from a prompt in the edge's inbox to its first token. Nobody has computed the
        prompt before."""
        prompt = self._model.prompt(length, number)
        return self._user.generate([prompt], 1).pipeline.first

    def struck(self, prompt: str, blow: Blow, prefill: float) -> Death:
        """One generation with the blow, compared with the same without. The blow comes first: a
        node that has copied a known prompt's beginning cannot replay it to another."""
        request_id, followed = asyncio.run(self._follow(prompt, blow))
        blamed = supervised(self._stack, "node_penalised", request_id)
        noticed = next(event["at"] for event in blamed if event["at"] > self._struck_at)
        opened = supervised(self._stack, "route_opened", request_id)
        self._stack.processes.kill(self._victim)
        self._start_spare(blow.stage)
        self._stack.wait_for_nodes(2 * NODES)
        _, calm = asyncio.run(self._follow(prompt, None))
        return Death(
            gap=followed.longest_gap,
            undisturbed_gap=calm.longest_gap,
            prefill=prefill,
            noticed=noticed - self._struck_at,
            kept=opened[-1]["kept"],
            equal=followed.token_ids == calm.token_ids,
        )

    async def _follow(self, prompt: str, blow: Blow | None) -> tuple[str, Followed]:
        request_id = await self._user.submit(prompt, NEW_TOKENS)
        async with Redis.from_url(self._stack.plan.redis_url) as redis:
            if blow is None:
                return request_id, await follow(redis, request_id)

            def strike() -> None:
                opened = supervised(self._stack, "route_opened", request_id)
                self._victim = self._name_of(opened[-1]["nodes"][blow.stage])
                self._struck_at = time.time()
                self._stack.processes.children[self._victim].process.send_signal(blow.signal)

            return request_id, await follow(redis, request_id, BLOW_AFTER, strike)

    def _name_of(self, node_id: str) -> str:
        children = self._stack.processes.children.items()
        return next(
            name
            for name, child in children
            if name.startswith("node-") and node_id in child.log.read_text()
        )

    def _start_spare(self, stage: int) -> None:
        self._started += 1
        name = f"node-{stage}-spare-{self._started}"
        self._stack.start_node(stage, self._spans[stage], name=name)


def measure(model: BenchModel, rounds: int, folder: Path, say: Callable[[str], None]) -> Measured:
    say("starting a mesh with two nodes for each span")
    # Room for KV caches is taken at once: six times the default would be the machine's memory.
    plan = network.plan(model, folder, nodes=NODES, node_options=("--kv-gb", "0.25"))
    measured = Measured()
    with DevelopmentStack(plan) as stack:
        mesh = Network(stack, model)
        say("warming up")
        for number in range(1, 5):  # each node once or twice
            mesh.prefill(LENGTHS[0], number)
        numbers = iter(range(100, 10**9))
        for round_number in range(1, rounds + 1):
            for length in LENGTHS:
                for name, blow in BLOWS.items():
                    say(f"round {round_number} of {rounds}: prompt of {length}, {blow.title}")
                    meter = OthersMeter(network.postmaster(stack))
                    prefill = mesh.prefill(length + BLOW_AFTER, next(numbers))
                    prompt = model.prompt(length, next(numbers))
                    death = mesh.struck(prompt, blow, prefill)
                    measured.deaths.setdefault((length, name), []).append(death)
                    measured.others.append(meter.read())
    return measured


def show(measured: Measured, model: BenchModel) -> None:
    count = len(next(iter(measured.deaths.values())))
    table = Table(
        title=f"{model.name}: {model.title}\n{NODES} nodes and a replica of each; struck after "
        f"{BLOW_AFTER} of {NEW_TOKENS} tokens; milliseconds, medians of {count}",
        title_justify="left",
    )
    for column in ("prompt", "blow"):
        table.add_column(column, no_wrap=True)
    for column in ("gap", "prefill", "beyond", "noticed", "no blow", "in time", "kept", "same"):
        table.add_column(column, justify="right", no_wrap=True)
    for (length, name), deaths in measured.deaths.items():
        table.add_row(
            f"{length}",
            BLOWS[name].title,
            spread([1000 * death.gap for death in deaths], bold=True),
            spread([1000 * death.prefill for death in deaths]),
            _median_ms([death.gap - death.prefill for death in deaths]),
            _median_ms([death.noticed for death in deaths]),
            _median_ms([death.undisturbed_gap for death in deaths]),
            f"{sum(death.in_time for death in deaths)}/{count}",
            f"{sum(death.kept for death in deaths)}/{(NODES - 1) * count}",
            f"{sum(death.equal for death in deaths)}/{count}",
        )
    console.print(table)
    console.print(
        "Gap: the longest between two tokens. Prefill: one of as many tokens. Beyond: gap less "
        "prefill. Noticed: after the blow. No blow: the same generation's longest gap without one. "
        f"In time: beyond at most {ALLOWED:g} s. Kept: of the nodes that live, those that kept "
        "their KV caches. Same: answers with the tokens that the prompt has without a blow."
    )


def _median_ms(seconds: list[float]) -> str:
    return f"{1000 * median(seconds):.0f}"


def main(
    model: Annotated[str, typer.Option(help="S or M.")] = "M",
    rounds: Annotated[int, typer.Option(min=1, help="Blows of each kind.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure how long a stream stands still when a node of its route dies.

    The real stack at its default settings, with two nodes for each of three spans. One generation
    runs; after 16 tokens the node that serves the middle span (or the edge, or the last span) is
    killed with `kill -9`, or stopped with SIGSTOP. The generation goes on over the replica.

    The figure is the longest time between two tokens, as a reader sees them who waits at the token
    stream in Redis (a blocking XREAD). Beside it: one prefill of as many tokens as there were at
    the blow, from the prompt in the edge's inbox to the first token, of a prompt that nobody knows;
    how soon after the blow the supervisor noticed; and the longest gap without a blow. The goal is
    at most a second and one prefill.

    Tokens are compared with those of the same prompt without a blow.
    """
    began = time.monotonic()
    if model.upper() not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with at_work() as (folder, say):
        made = models.make(model.upper(), DEMO_MODEL, folder / "model")
        measured = measure(made, rounds, folder / "data", say)
    show(measured, made)
    measurements = {
        "model": made.title,
        "nodes": NODES,
        "blow_after": BLOW_AFTER,
        "tokens": NEW_TOKENS,
        "deaths": [
            {"prompt": length, "blow": name, **asdict(death)}
            for (length, name), deaths in measured.deaths.items()
            for death in deaths
        ],
    }
    close(measurements, others=measured.others, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
