"""The stall of a stream when a node fails: `python -m benchmarks.deaths --help`."""

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
from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, spread, workspace, write_results
from benchmarks.running import network
from benchmarks.running.token_times import Followed, follow, supervised
from benchmarks.running.user import User
from market.placement.solver import even_split
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

NODES = 3
LENGTHS = (16, 512)
FAULT_AFTER = 16
"""Tokens that have arrived when the fault is injected."""

NEW_TOKENS = 48
ALLOWED = 1.0
"""Seconds that a stall may last beyond one prefill."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A signal that is sent to a node of the route; ``stage`` 0 holds the edge."""

    title: str
    stage: int
    signal: signal.Signals


FAULTS = {
    "middle": Fault("middle killed", 1, signal.SIGKILL),
    "edge": Fault("edge killed", 0, signal.SIGKILL),
    "last": Fault("last killed", 2, signal.SIGKILL),
    "stopped": Fault("middle stopped", 1, signal.SIGSTOP),
}


@dataclass(frozen=True, slots=True)
class FaultResult:
    """Seconds: the longest gap between two tokens, with the fault and of the same generation
    without it; one prefill of as many tokens as there were; from the fault until the supervisor
    noticed it. ``kept``: nodes that kept their KV cache."""

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
class FaultResults:
    """Results by length of the prompt and fault."""

    by_case: dict[tuple[int, str], list[FaultResult]] = field(default_factory=dict)
    other_cpu: list[float] = field(default_factory=list)


class ReplicatedMesh:
    """A mesh with two nodes for each span. A node that failed is replaced before the next fault."""

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
        """Seconds from a prompt in the edge's inbox to its first token. No node has computed it
        before."""
        prompt = self._model.prompt(length, number)
        return self._user.generate([prompt], 1).pipeline.first

    def with_fault(self, prompt: str, fault: Fault, prefill: float) -> FaultResult:
        """One generation with the fault, compared with the same without one. The fault comes first:
        a node that has copied a known prompt's beginning cannot replay it to another."""
        request_id, followed = asyncio.run(self._follow(prompt, fault))
        penalised = supervised(self._stack, "node_penalised", request_id)
        noticed = next(event["at"] for event in penalised if event["at"] > self._fault_at)
        opened = supervised(self._stack, "route_opened", request_id)
        self._stack.processes.kill(self._victim)
        self._start_spare(fault.stage)
        self._stack.wait_for_nodes(2 * NODES)
        _, undisturbed = asyncio.run(self._follow(prompt, None))
        return FaultResult(
            gap=followed.longest_gap,
            undisturbed_gap=undisturbed.longest_gap,
            prefill=prefill,
            noticed=noticed - self._fault_at,
            kept=opened[-1]["kept"],
            equal=followed.token_ids == undisturbed.token_ids,
        )

    async def _follow(self, prompt: str, fault: Fault | None) -> tuple[str, Followed]:
        request_id = await self._user.submit(prompt, NEW_TOKENS)
        async with Redis.from_url(self._stack.plan.redis_url) as redis:
            if fault is None:
                return request_id, await follow(redis, request_id)

            def inject_fault() -> None:
                opened = supervised(self._stack, "route_opened", request_id)
                self._victim = self._name_of(opened[-1]["nodes"][fault.stage])
                self._fault_at = time.time()
                self._stack.processes.children[self._victim].process.send_signal(fault.signal)

            return request_id, await follow(redis, request_id, FAULT_AFTER, inject_fault)

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


def measure(
    model: BenchModel, rounds: int, folder: Path, report_progress: Callable[[str], None]
) -> FaultResults:
    report_progress("starting a mesh with two nodes for each span")
    # KV blocks are allocated at once: six times the default would be the machine's memory.
    plan = network.plan(model, folder, nodes=NODES, node_options=("--kv-gb", "0.25"))
    results = FaultResults()
    with DevelopmentStack(plan) as stack:
        mesh = ReplicatedMesh(stack, model)
        report_progress("warming up")
        for number in range(1, 5):  # each node once or twice
            mesh.prefill(LENGTHS[0], number)
        numbers = iter(range(100, 10**9))
        for round_number in range(1, rounds + 1):
            for length in LENGTHS:
                for name, fault in FAULTS.items():
                    report_progress(
                        f"round {round_number} of {rounds}: prompt of {length}, {fault.title}"
                    )
                    meter = OtherCpuMeter(network.postmaster(stack))
                    prefill = mesh.prefill(length + FAULT_AFTER, next(numbers))
                    prompt = model.prompt(length, next(numbers))
                    result = mesh.with_fault(prompt, fault, prefill)
                    results.by_case.setdefault((length, name), []).append(result)
                    results.other_cpu.append(meter.read())
    return results


def show(results: FaultResults, model: BenchModel) -> None:
    count = len(next(iter(results.by_case.values())))
    table = Table(
        title=f"{model.name}: {model.title}\n{NODES} nodes and a replica of each; fault after "
        f"{FAULT_AFTER} of {NEW_TOKENS} tokens; milliseconds, medians of {count}",
        title_justify="left",
    )
    for column in ("prompt", "fault"):
        table.add_column(column, no_wrap=True)
    for column in ("gap", "prefill", "beyond", "noticed", "no fault", "in time", "kept", "same"):
        table.add_column(column, justify="right", no_wrap=True)
    for (length, name), cases in results.by_case.items():
        table.add_row(
            f"{length}",
            FAULTS[name].title,
            spread([1000 * result.gap for result in cases], bold=True),
            spread([1000 * result.prefill for result in cases]),
            _median_ms([result.gap - result.prefill for result in cases]),
            _median_ms([result.noticed for result in cases]),
            _median_ms([result.undisturbed_gap for result in cases]),
            f"{sum(result.in_time for result in cases)}/{count}",
            f"{sum(result.kept for result in cases)}/{(NODES - 1) * count}",
            f"{sum(result.equal for result in cases)}/{count}",
        )
    console.print(table)
    console.print(
        "Gap: the longest between two tokens. Prefill: one of as many tokens. Beyond: gap less "
        "prefill. Noticed: after the fault. No fault: the same generation's longest gap without "
        f"one. In time: beyond at most {ALLOWED:g} s. Kept: of the nodes that live, those that "
        "kept their KV caches. Same: answers with the tokens that the prompt has without a fault."
    )


def _median_ms(seconds: list[float]) -> str:
    return f"{1000 * median(seconds):.0f}"


def main(
    model: Annotated[str, typer.Option(help="S or M.")] = "M",
    rounds: Annotated[int, typer.Option(min=1, help="Faults of each kind.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure how long a stream stalls when a node of its route fails.

    The real stack at its default settings, with two nodes for each of three spans. One generation
    runs; after 16 tokens the node that serves the middle span (or the edge, or the last span) is
    killed with `kill -9`, or stopped with SIGSTOP. The generation goes on over the replica.

    The figure is the longest time between two tokens, as a reader sees them who waits at the token
    stream in Redis (a blocking XREAD). Beside it: one prefill of as many tokens as there were at
    the fault, from the prompt in the edge's inbox to the first token, of a prompt that no node
    knows; how soon after the fault the supervisor noticed; and the longest gap without a fault. The
    goal is at most a second and one prefill.

    Tokens are compared with those of the same prompt without a fault.
    """
    began = time.monotonic()
    if model.upper() not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with workspace() as (folder, report_progress):
        made = models.make(model.upper(), DEMO_MODEL, folder / "model")
        results = measure(made, rounds, folder / "data", report_progress)
    show(results, made)
    measurements = {
        "model": made.title,
        "nodes": NODES,
        "blow_after": FAULT_AFTER,
        "tokens": NEW_TOKENS,
        "deaths": [
            {"prompt": length, "blow": name, **asdict(result)}
            for (length, name), cases in results.by_case.items()
            for result in cases
        ],
    }
    write_results(measurements, other_cpu=results.other_cpu, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
