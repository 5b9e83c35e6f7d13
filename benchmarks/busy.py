"""Share of the time that spans compute: `python -m benchmarks.busy --help`."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer
from redis.asyncio import Redis
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OtherCpuMeter, tree_seconds
from benchmarks.common.output import console, spread, workspace, write_results
from benchmarks.running import network, node_metrics
from benchmarks.running.token_times import TOKEN_TIMEOUT
from benchmarks.running.user import User
from mesh import redis_keys
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

NODES = 2
PROMPT = 16
GENERATIONS = (4, 8, 16)
TOKENS = {"S": 192, "M": 64, "L": 16}
"""New tokens of each generation."""

GOAL = 0.9
POLL_SECONDS = 0.05
"""Seconds between polls of the generations' token counts."""


@dataclass(frozen=True, slots=True)
class UtilizationSample:
    """While ``generations`` were decoding: by span, the share of the time that its node
    computed, and that its process ran on a core; cores that all else of the mesh used;
    and tokens a second."""

    generations: int
    computing: list[float]
    running: list[float]
    rest: float
    rate: float


@dataclass(slots=True)
class UtilizationResults:
    samples: list[UtilizationSample] = field(default_factory=list)
    other_cpu: list[float] = field(default_factory=list)


class UtilizationProbe:
    """Reads counters of a mesh of two nodes, while no client reads the tokens."""

    def __init__(self, stack: DevelopmentStack, model: BenchModel) -> None:
        self._stack = stack
        self._model = model
        self._user = User(stack)
        self._user.generate([model.prompt(PROMPT)] * 4, 4)
        self._nodes = {
            name: psutil.Process(stack.processes.children[name].process.pid)
            for name in (f"node-{index}" for index in range(NODES))
        }
        self._roots = (psutil.Process(), network.postmaster(stack))

    def sample(self, generations: int, new_tokens: int) -> UtilizationSample:
        """From when all have begun to when the first one ends."""
        return asyncio.run(self._sample(generations, new_tokens))

    async def _sample(self, generations: int, new_tokens: int) -> UtilizationSample:
        prompts = [self._model.prompt(PROMPT, number) for number in range(generations)]
        async with Redis.from_url(self._stack.plan.redis_url) as redis:
            jobs = await asyncio.gather(
                *(self._user.submit(prompt, new_tokens) for prompt in prompts)
            )
            begun = await _wait_for_counts(redis, jobs, lambda counts: min(counts) > 0)
            before = self._read()
            ended = await _wait_for_counts(redis, jobs, lambda counts: max(counts) >= new_tokens)
            after = self._read()
            await _wait_for_counts(redis, jobs, lambda counts: min(counts) >= new_tokens)
        if max(begun) >= new_tokens:
            raise RuntimeError("A generation had ended before all had begun.")
        seconds = after.at - before.at
        running = [
            (now - then) / seconds for then, now in zip(before.running, after.running, strict=True)
        ]
        return UtilizationSample(
            generations=generations,
            computing=[
                (now - then) / seconds
                for then, now in zip(before.computing, after.computing, strict=True)
            ],
            running=running,
            rest=(after.all - before.all) / seconds - sum(running),
            rate=(sum(ended) - sum(begun)) / seconds,
        )

    def _read(self) -> "_CounterReading":
        return _CounterReading(
            at=time.perf_counter(),
            computing=[node_metrics.read(self._stack, name).computing for name in self._nodes],
            running=[tree_seconds(process) for process in self._nodes.values()],
            all=sum(map(tree_seconds, self._roots)),
        )


@dataclass(frozen=True, slots=True)
class _CounterReading:
    """Seconds: wall clock, forwards and CPU time by node, CPU time of all processes."""

    at: float
    computing: list[float]
    running: list[float]
    all: float


async def _wait_for_counts(
    redis: Redis, jobs: Sequence[str], condition: Callable[[Sequence[int]], bool]
) -> Sequence[int]:
    """Poll the jobs' token counts until the condition holds; returns them.

    Raises:
        RuntimeError: it does not hold within :data:`TOKEN_TIMEOUT`.
    """
    deadline = time.monotonic() + TOKEN_TIMEOUT
    while time.monotonic() < deadline:
        async with redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.xlen(redis_keys.tokens(job))
            counts = await pipe.execute()
        if condition(counts):
            return counts
        await asyncio.sleep(POLL_SECONDS)
    raise RuntimeError(f"The generations make no progress: {counts} tokens.")


def measure(
    model: BenchModel, rounds: int, folder: Path, report_progress: Callable[[str], None]
) -> UtilizationResults:
    report_progress("starting two nodes")
    plan = network.plan(model, folder, nodes=NODES, node_options=("--no-speculate",))
    results = UtilizationResults()
    with DevelopmentStack(plan) as stack:
        probe = UtilizationProbe(stack, model)
        for number in range(1, rounds + 1):
            for generations in GENERATIONS:
                report_progress(f"round {number} of {rounds}: {generations} at once")
                meter = OtherCpuMeter(network.postmaster(stack))
                results.samples.append(probe.sample(generations, TOKENS[model.name]))
                results.other_cpu.append(meter.read())
    return results


def show(results: UtilizationResults, model: BenchModel, rounds: int) -> None:
    table = Table(
        title=f"{model.name}: {model.title}\n{NODES} spans; shares of the time in percent, medians "
        f"of {rounds}; no draft tokens, no client reads",
        title_justify="left",
    )
    table.add_column("at once", justify="right")
    for span in range(NODES):
        table.add_column(f"span {span} computes", justify="right")
    for column in ("processes run", "the rest, cores", "tokens/s"):
        table.add_column(column, justify="right")
    for generations in GENERATIONS:
        samples = [s for s in results.samples if s.generations == generations]
        table.add_row(
            str(generations),
            *(
                spread([100 * s.computing[span] for s in samples], bold=True)
                for span in range(NODES)
            ),
            ", ".join(
                f"{100 * median(s.running[span] for s in samples):.0f}" for span in range(NODES)
            ),
            f"{median(s.rest for s in samples):.2f}",
            f"{median(s.rate for s in samples):.0f}",
        )
    console.print(table)
    console.print(
        f"Computes: wall clock within the engine's steps that ran a forward (goal: above "
        f"{GOAL:.0%}). Processes run: CPU time of each node. The rest: API, worker, Redis, "
        "Postgres, chain and this command."
    )


def main(
    model: Annotated[str, typer.Option(help="S, M or L.")] = "M",
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each number.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure how much of the time the nodes of a two-span route compute.

    With several generations on the route, one node can work at some while the other works at the
    rest. Ideally both always do, each on a core of its own. Generations are asynchronous jobs,
    so no client reads the tokens. What is measured lies between the first token of the last one to
    begin and the end of the first one to end.

    Computing is taken from the nodes' Prometheus counter of seconds in forwards
    (with what belongs to a step: reading it, and on the edge sampling), by the wall clock, so that
    a node which waits for its core still counts. Beside it is the CPU time of its process. What is
    missing to 100 % is the exchange with Redis and waiting for the other node.
    """
    began = time.monotonic()
    name = model.upper()
    if name not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with workspace() as (folder, report_progress):
        made = models.make(name, DEMO_MODEL, folder / "model")
        results = measure(made, rounds, folder / "data", report_progress)
    show(results, made, rounds)
    measurements = {
        "model": made.title,
        "nodes": NODES,
        "samples": [asdict(sample) for sample in results.samples],
    }
    write_results(measurements, other_cpu=results.other_cpu, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
