"""Clients that disconnect at random tokens: `python -m benchmarks.hangups --help`."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, workspace, write_results
from benchmarks.running import network
from benchmarks.running.disconnecting_clients import Disconnect, DisconnectingClients, Mesh
from benchmarks.running.user import User
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

PROMPT_TOKENS = 16
PROMPTS = 50
NODES = 3


def measure(
    model: BenchModel,
    clients: int,
    at_once: int,
    most_tokens: int,
    seed: int,
    folder: Path,
    report_progress: Callable[[str], None],
) -> tuple[list[Disconnect], float, float]:
    """What became of each client, the seconds that all took, and the cores that other processes
    used."""
    report_progress("starting a mesh")
    with DevelopmentStack(network.plan(model, folder, nodes=NODES)) as stack:
        user = User(stack)
        user.generate([model.prompt(PROMPT_TOKENS, 1)], 8)
        mesh = Mesh(
            stack.plan.api_url, stack.plan.redis_url, stack.database_url, stack.plan.model_id
        )
        prompts = [model.prompt(PROMPT_TOKENS, 2 + number) for number in range(PROMPTS)]
        crowd = DisconnectingClients(mesh, user.authorization, prompts, seed=seed)
        left = clients

        def note(_: Disconnect) -> None:
            nonlocal left
            left -= 1
            report_progress(f"{left} of {clients} clients are to disconnect yet")

        meter, began = OtherCpuMeter(network.postmaster(stack)), time.monotonic()
        found = asyncio.run(crowd.run(clients, at_once=at_once, most_tokens=most_tokens, note=note))
        return found, time.monotonic() - began, meter.read()


def percentiles(values: Sequence[float]) -> str:
    """The median, the 99th percentile and the greatest."""
    cuts = quantiles(values, n=100, method="inclusive")
    return f"{cuts[49]:.0f} / {cuts[98]:.0f} / {max(values):.0f}"


def row(name: str, clients: Sequence[Disconnect]) -> list[str]:
    """A line of the table for some clients, of whom those count whose jobs had not ended."""
    counted = [client for client in clients if client.cancelled]
    freed = [1000 * max(client.kv_freed) for client in counted if client.kv_freed]
    sealed = [1000 * client.sealed for client in counted]
    return [
        name,
        f"{len(counted)}",
        percentiles(sealed),
        percentiles(freed),
        distribution([client.beyond for client in counted]),
        distribution([client.tokens - client.read for client in counted]),
    ]


def distribution(values: Sequence[int]) -> str:
    """How often there was each."""
    return "\n".join(f"{value:+d}: {count}" for value, count in sorted(Counter(values).items()))


def main(
    model: Annotated[str, typer.Option(help="S or M.")] = "S",
    clients: Annotated[int, typer.Option(min=8, help="Clients that disconnect.")] = 500,
    at_once: Annotated[int, typer.Option(min=1, help="Clients at one time.")] = 50,
    tokens: Annotated[int, typer.Option(min=1, help="After which all have gone.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the tokens at which they disconnect.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure when KV cache is free, and what is billed, after clients disconnect at random tokens.

    The real stack with three nodes. Half of the clients read a stream, half wait for a whole
    answer; half use /api/inference/distributed/generate, half /v1/completions. Each closes its
    connection at a random token, which may be none. From that moment each node of its route is
    asked again and again whether it has anything of the job. What was read is what the client had
    then, and what was sent, all that the gateway had written to it until it knew; for a client that
    does not stream both are what had been generated.
    """
    began = time.monotonic()
    if model.upper() not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with workspace() as (folder, report_progress):
        made = models.make(model.upper(), DEMO_MODEL, folder / "model")
        found, seconds, other_cpu = measure(
            made, clients, at_once, tokens, seed, folder / "data", report_progress
        )
    table = Table(
        title=f"{made.name}: {made.title}; {clients} clients within {seconds:.0f} s, "
        f"{at_once} at a time",
        title_justify="left",
    )
    table.add_column("clients")
    table.add_column("counted", justify="right")
    table.add_column("no more tokens,\nms: p50 / p99 / max", justify="right")
    table.add_column("KV free on all nodes,\nms: p50 / p99 / max", justify="right")
    table.add_column("billed beyond\nwhat was sent:\nclients", justify="right")
    table.add_column("billed beyond\nwhat was read:\nclients", justify="right")
    streams = [client for client in found if client.streams]
    table.add_row(*row("streaming", streams))
    table.add_row(*row("waiting", [client for client in found if not client.streams]))
    table.add_row(*row("all", found))
    console.print(table)
    written: list[dict[str, Any]] = [asdict(c) | {"cost": str(c.cost)} for c in found]
    write_results({"clients": written}, other_cpu=[other_cpu], began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
