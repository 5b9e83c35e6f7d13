"""Many times more jobs than the mesh can serve: `python -m benchmarks.overload --help`."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Annotated

import psutil
import typer
from redis.asyncio import Redis
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, workspace, write_results
from benchmarks.running import network
from benchmarks.running.load_generator import LoadGenerator, LoadResult
from benchmarks.running.user import User
from market.settings.generation import GenerationSettings
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

PROMPT_TOKENS = 16

PROMPTS = 50

SATURATION_SECONDS = 20.0
"""Seconds for which the mesh is kept busy, without waiting jobs, to learn how much it can do."""

LOW_PRIORITY = 10
"""Of `nice`: high enough that nodes send their heartbeats in time."""

PROCESSES = {"gateway": "api", "worker": "worker-0"}


@dataclass(frozen=True, slots=True)
class Load:
    """``users``: wallets that take turns. ``times``: jobs a second, as a multiple of what the mesh
    can serve, for ``seconds``. ``burst``: jobs at one moment, after that. ``tokens``: of a job.
    ``nodes``: that serve the model together."""

    users: int
    times: float
    seconds: float
    burst: int
    tokens: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """``served_a_second``: jobs that the mesh ends when it is kept busy. ``memory``: MB of each
    process, before the load and after all of it has ended."""

    served_a_second: float
    arriving: LoadResult
    at_once: LoadResult
    memory: dict[str, tuple[float, float]]


def measure(
    model: BenchModel, load: Load, folder: Path, report_progress: Callable[[str], None]
) -> tuple[Measured, float]:
    """The figures, and the cores that other processes used."""
    report_progress("starting a mesh")
    settings = {
        "FAR_GENERATION__JOBS_PER_ROUTE": str(GenerationSettings().jobs_per_route),
        "FAR_LIMITS__BODIES_PER_IP": "1000000/hour",
        "FAR_LIMITS__REQUESTS_PER_IP": "100000000/hour",
        "FAR_LIMITS__LOGINS_PER_IP": "1000000/hour",
    }
    plan = network.plan(model, folder, nodes=load.nodes, settings=settings)
    with DevelopmentStack(plan) as stack:
        _lower_priority_of_nodes(stack)
        report_progress("giving the users money")
        users = [User(stack) for _ in range(load.users)]
        for user in users:
            user.generate([model.prompt(PROMPT_TOKENS)], 4)
        meter = OtherCpuMeter(network.postmaster(stack))
        measured = asyncio.run(_measure(stack, model, load, users, report_progress))
        return measured, meter.read()


def _lower_priority_of_nodes(stack: DevelopmentStack) -> None:
    """Elsewhere nodes are other machines. Here they compute when the gateway does not."""
    for name, child in stack.processes.children.items():
        if name.startswith("node"):
            psutil.Process(child.process.pid).nice(LOW_PRIORITY)
            group = Path(f"/proc/{child.process.pid}/autogroup")
            if group.exists():  # each session is a group, and only groups compete (sched(7))
                group.write_text(str(LOW_PRIORITY))


async def _measure(
    stack: DevelopmentStack,
    model: BenchModel,
    load: Load,
    users: Sequence[User],
    report_progress: Callable[[str], None],
) -> Measured:
    prompts = [model.prompt(PROMPT_TOKENS, number) for number in range(PROMPTS)]
    generator = LoadGenerator(users, prompts, load.tokens, stack.plan.api_url)
    async with Redis.from_url(stack.plan.redis_url) as redis:
        report_progress("measuring what it can serve")
        served = await generator.saturate(redis, jobs=16, seconds=SATURATION_SECONDS)
        before = _memory(stack)
        report_progress(f"{load.times:g} times as many, for {load.seconds:.0f} s")
        arriving = await generator.run_open_loop(
            redis, rate=load.times * served, seconds=load.seconds
        )
        report_progress(f"{load.burst} at once")
        at_once = await generator.at_once(redis, load.burst)
        after = _memory(stack)
    return Measured(
        served, arriving, at_once, {name: (before[name], after[name]) for name in PROCESSES}
    )


def _memory(stack: DevelopmentStack) -> dict[str, float]:
    """Resident MB by process."""
    return {
        name: psutil.Process(stack.processes.children[child].process.pid).memory_info().rss / 1e6
        for name, child in PROCESSES.items()
    }


def percentiles(values: Sequence[float], digits: int = 0) -> str:
    """The median, the 99th percentile and the greatest."""
    if len(values) < 2:
        return " / ".join(f"{value:.{digits}f}" for value in values) or "-"
    cuts = quantiles(values, n=100, method="inclusive")
    return " / ".join(f"{value:.{digits}f}" for value in (cuts[49], cuts[98], max(values)))


def rows(name: str, result: LoadResult) -> list[tuple[str, str]]:
    """Lines of the table for one load."""
    refusals = ", ".join(f"{count} {code}" for code, count in sorted(result.codes.items()))
    ends = ", ".join(f"{count} {end}" for end, count in sorted(result.ends.items()))
    found = [
        (f"{name}: accepted", f"{len(result.accepted)}"),
        ("  ended", ends or "-"),
        ("  submission to 202, ms: p50 / p99 / max", percentiles(result.accepted_ms)),
        ("  submission to first token, s: p50 / p99 / max", percentiles(result.waits, 1)),
        ("  refused", refusals or "-"),
        ("  submission to refusal, ms: p50 / p99 / max", percentiles(result.refused_ms)),
        ("  Retry-After, s: p50 / p99 / max", percentiles(result.retry_after)),
    ]
    if result.logins_ms:
        found.append(
            ("  login of somebody else, ms: p50 / p99 / max", percentiles(result.logins_ms))
        )
    return found


def main(
    model: Annotated[str, typer.Option(help="S or M.")] = "S",
    users: Annotated[int, typer.Option(min=1, help="Wallets that take turns.")] = 10,
    times: Annotated[float, typer.Option(min=1, help="Multiple of what can be served.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, help="For so long.")] = 60,
    burst: Annotated[int, typer.Option(min=0, help="Jobs at one moment, after that.")] = 400,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a job.")] = 64,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the route.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Submit many times more jobs than the mesh can serve: first at a steady rate, then at once.

    The real stack on this machine. First it is kept busy with 16 jobs at a time, to learn how many
    it serves a second; then jobs arrive at random at a multiple of that rate, from several wallets,
    whether they are accepted or not. All accepted jobs are followed to their end.
    """
    began = time.monotonic()
    if model.upper() not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    load = Load(users, times, seconds, burst, tokens, nodes)
    with workspace() as (folder, report_progress):
        made = models.make(model.upper(), DEMO_MODEL, folder / "model")
        found, other_cpu = measure(made, load, folder / "data", report_progress)
    table = Table(
        title=f"{made.name}: {made.title}; {tokens} tokens a job, "
        f"{found.served_a_second:.1f} jobs a second when kept busy",
        title_justify="left",
        show_header=False,
    )
    for label, text in [
        *rows(f"{times:g} times as many for {seconds:.0f} s", found.arriving),
        *rows(f"{burst} at once", found.at_once),
        *(
            (f"{name}, MB before / after", f"{before:.0f} / {after:.0f}")
            for name, (before, after) in found.memory.items()
        ),
    ]:
        table.add_row(label, text)
    console.print(table)
    write_results(
        {"load": asdict(load), "measured": asdict(found)},
        other_cpu=[other_cpu],
        began=began,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
