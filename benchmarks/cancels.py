"""How soon a cancelled generation's KV cache is free: `python -m benchmarks.cancels --help`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, spread, workspace, write_results
from benchmarks.running import network, node_metrics
from benchmarks.running.user import User
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

NODES = 3
CANCEL_AFTER = 8
"""Tokens that have arrived by then."""

NEW_TOKENS = 1000
RELEASE_TIMEOUT = 30.0
"""Seconds after which KV cache that is still held counts as lost."""


def seconds_until_kv_free(stack: DevelopmentStack, since: float) -> list[float]:
    """Seconds from ``since`` (monotonic) until each node holds no generation's KV cache any more.

    Raises:
        RuntimeError: one still does after :data:`RELEASE_TIMEOUT`.
    """
    waiting = {f"node-{stage}" for stage in range(NODES)}
    took: dict[str, float] = {}
    while waiting:
        for name in sorted(waiting):
            if node_metrics.read(stack, name).kv_used == 0:
                took[name] = time.monotonic() - since
        waiting -= took.keys()
        if time.monotonic() - since > RELEASE_TIMEOUT:
            raise RuntimeError(f"{', '.join(sorted(waiting))} still hold KV cache.")
    return [took[name] for name in sorted(took)]


def disconnect(user: User, prompt: str) -> float:
    """Stream a generation and close the connection in the middle; returns when (monotonic)."""
    with user.streaming(prompt, NEW_TOKENS) as lines:
        for _ in range(CANCEL_AFTER):
            next(lines)
        return time.monotonic()


def cancel(user: User, prompt: str) -> float:
    """Start a generation and cancel it in the middle; returns when (monotonic)."""
    return user.cancel(prompt, NEW_TOKENS, CANCEL_AFTER)


ENDINGS = {"cancelled": cancel, "disconnected": disconnect}


def measure(
    model: BenchModel, rounds: int, folder: Path, report_progress: Callable[[str], None]
) -> tuple[dict[str, list[list[float]]], list[float]]:
    """By ending: of each round, seconds until each node's KV cache was free. And the cores that
    other processes used."""
    report_progress("starting a mesh")
    found: dict[str, list[list[float]]] = {ending: [] for ending in ENDINGS}
    other_cpu = []
    with DevelopmentStack(network.plan(model, folder, nodes=NODES)) as stack:
        user = User(stack)
        user.generate([model.prompt(16, 1)], 8)
        for number in range(rounds):
            for ending, end_generation in ENDINGS.items():
                report_progress(f"round {number + 1} of {rounds}: {ending}")
                meter = OtherCpuMeter(network.postmaster(stack))
                found[ending].append(
                    seconds_until_kv_free(stack, end_generation(user, model.prompt(16, 2 + number)))
                )
                other_cpu.append(meter.read())
    return found, other_cpu


def main(
    model: Annotated[str, typer.Option(help="S or M.")] = "M",
    rounds: Annotated[int, typer.Option(min=1, help="Generations ended in each way.")] = 10,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure how soon every node's KV cache is free after a user cancels or disconnects.

    The real stack with three nodes. A generation of up to 1000 tokens runs; after 8 of them it is
    cancelled (DELETE), or its stream of events is closed. The clock runs from that moment until a
    node's metric shows no KV cache in use, read as often as it answers.
    """
    began = time.monotonic()
    if model.upper() not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with workspace() as (folder, report_progress):
        made = models.make(model.upper(), DEMO_MODEL, folder / "model")
        found, other_cpu = measure(made, rounds, folder / "data", report_progress)
    table = Table(
        title=f"{made.name}: {made.title}\nmilliseconds until KV cache is free, "
        f"medians of {rounds}",
        title_justify="left",
    )
    table.add_column("the generation is")
    for stage in range(NODES):
        table.add_column(f"node {stage}", justify="right", no_wrap=True)
    table.add_column("all, at most", justify="right")
    for ending, all_took in found.items():
        by_node = [spread([1000 * took for took in node]) for node in zip(*all_took, strict=True)]
        table.add_row(ending, *by_node, f"{1000 * max(map(max, all_took)):.0f}")
    console.print(table)
    write_results({"seconds": found}, other_cpu=other_cpu, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
