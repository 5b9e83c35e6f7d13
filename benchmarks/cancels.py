"""How soon a cancelled generation's KV room is free: `python -m benchmarks.cancels --help`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OthersMeter
from benchmarks.common.output import at_work, close, console, spread
from benchmarks.running import network, node_metrics
from benchmarks.running.user import User
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

NODES = 3
CANCEL_AFTER = 8
"""Tokens that have arrived by then."""

NEW_TOKENS = 1000
PATIENCE = 30.0
"""Seconds after which room that is not free counts as lost."""


def freed(stack: DevelopmentStack, since: float) -> list[float]:
    """Seconds from ``since`` until each node holds no generation any more.

    Raises:
        RuntimeError: one still does after :data:`PATIENCE`.
    """
    waiting = {f"node-{stage}" for stage in range(NODES)}
    took: dict[str, float] = {}
    while waiting:
        for name in sorted(waiting):
            if node_metrics.read(stack, name).kv_used == 0:
                took[name] = time.monotonic() - since
        waiting -= took.keys()
        if time.monotonic() - since > PATIENCE:
            raise RuntimeError(f"{', '.join(sorted(waiting))} still hold KV room.")
    return [took[name] for name in sorted(took)]


def hang_up(user: User, prompt: str) -> float:
    """Stream a generation and close the connection in the middle; when it was closed."""
    with user.streaming(prompt, NEW_TOKENS) as lines:
        for _ in range(CANCEL_AFTER):
            next(lines)
        return time.monotonic()


def cancel(user: User, prompt: str) -> float:
    """Start a generation and cancel it in the middle; when that was asked for."""
    return user.cancel(prompt, NEW_TOKENS, CANCEL_AFTER)


WAYS = {"cancelled": cancel, "hung up on": hang_up}


def measure(
    model: BenchModel, rounds: int, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, list[list[float]]], list[float]]:
    """By way: of each round, seconds until each node's room was free. And what others used."""
    say("starting a mesh")
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    others = []
    with DevelopmentStack(network.plan(model, folder, nodes=NODES)) as stack:
        user = User(stack)
        user.generate([model.prompt(16, 1)], 8)
        for number in range(rounds):
            for way, act in WAYS.items():
                say(f"round {number + 1} of {rounds}: {way}")
                meter = OthersMeter(network.postmaster(stack))
                found[way].append(freed(stack, act(user, model.prompt(16, 2 + number))))
                others.append(meter.read())
    return found, others


def main(
    model: Annotated[str, typer.Option(help="S or M.")] = "M",
    rounds: Annotated[int, typer.Option(min=1, help="Generations ended in each way.")] = 10,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure how soon every node's KV room is free after a user cancels, or hangs up.

    The real stack with three nodes. A generation of up to 1000 tokens runs; after 8 of them it is
    cancelled (DELETE), or its stream of events is closed. The clock runs from that moment until a
    node's metric says that no generation holds KV room there, asked as often as it answers.
    """
    began = time.monotonic()
    if model.upper() not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with at_work() as (folder, say):
        made = models.make(model.upper(), DEMO_MODEL, folder / "model")
        found, others = measure(made, rounds, folder / "data", say)
    table = Table(
        title=f"{made.name}: {made.title}\nmilliseconds until KV room is free, medians of {rounds}",
        title_justify="left",
    )
    table.add_column("the generation is")
    for stage in range(NODES):
        table.add_column(f"node {stage}", justify="right", no_wrap=True)
    table.add_column("all, at most", justify="right")
    for way, all_took in found.items():
        by_node = [spread([1000 * took for took in node]) for node in zip(*all_took, strict=True)]
        table.add_row(way, *by_node, f"{1000 * max(map(max, all_took)):.0f}")
    console.print(table)
    close({"seconds": found}, others=others, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
