"""Time from `far-node start` to the first token: `python -m benchmarks.joining --help`."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks import footprint
from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, spread, workspace, write_results
from benchmarks.running import file_server, installing, network, newcomer
from benchmarks.running.installing import REPOSITORY, Installed
from benchmarks.running.newcomer import PHASES, Joined, MachineDirectory
from benchmarks.running.user import User
from mesh.checkpoint.manifest import NAME, make_manifest
from mesh.model.memory_footprint import footprint as model_footprint
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL
from stack.servers import START_LIMIT, StackError, free_port, port_in_use

NODES = 3
LEAVING_NODE = 1
"""The node that leaves, so that no node serves its layers when another joins."""

PROMPT = 16
LARGE = "Llama-2-7B"
LINK_MEGABITS = (50, 100, 500, 1000)
"""Mbit/s."""

TARGET_SECONDS = 15 * 60
"""Seconds from nothing to the first token that the specification allows."""

SETTINGS = {
    "FAR_LIMITS__REGISTRATIONS_PER_IP": "100000/hour",
    "FAR_LIMITS__BODIES_PER_IP": "100000/hour",
}


@dataclass(slots=True)
class JoinResults:
    cold: list[Joined] = field(default_factory=list)
    warm: list[Joined] = field(default_factory=list)
    other_cpu: list[float] = field(default_factory=list)


def transfer_seconds(size: int, megabits: float) -> float:
    """Seconds that ``size`` bytes take over a line of ``megabits`` 10⁶ bits a second."""
    return 8 * size / (megabits * 10**6)


def half_of(config: dict[str, Any]) -> tuple[int, int]:
    """Half of a model's layers, and their bytes in 16 bits; without the edge, which strangers do
    not hold."""
    layers = config["num_hidden_layers"] // 2
    return layers, layers * model_footprint(config).layer


def layers_within(config: dict[str, Any], seconds: float, megabits: float) -> int:
    """How many layers in 16 bits a line carries in ``seconds``; at most all of the model's."""
    layer = transfer_seconds(model_footprint(config).layer, megabits)
    return min(config["num_hidden_layers"], int(max(0.0, seconds) / layer))


def measure(
    model: BenchModel, rounds: int, folder: Path, report_progress: Callable[[str], None]
) -> JoinResults:
    """Joins with an empty cache of weights, and then one with the cache of the last of them."""
    results = JoinResults()
    port = free_port()
    plan = network.plan(model, folder / "data", nodes=NODES, settings=SETTINGS)
    published = {
        "id": plan.model_id,
        "path": plan.model,
        "payment_per_token": plan.price,
        "weights_url": f"http://127.0.0.1:{port}",
    }
    plan.environment["FAR_MODELS"] = json.dumps([published])
    report_progress("publishing the weights and starting a mesh")
    (model.folder / NAME).write_bytes(make_manifest(model.folder, plan.model_id).to_bytes())
    with DevelopmentStack(plan) as stack:
        _serve(stack, model.folder, port)
        user = User(stack)
        prompt = model.prompt(PROMPT)
        user.generate([prompt], newcomer.NEW_TOKENS)  # waits for the deposit
        expected = newcomer.texts(user, prompt)
        stack.processes.end(f"node-{LEAVING_NODE}")
        for number in range(rounds + 1):
            stack.wait_for_nodes(NODES - 1)
            warm = number == rounds
            report_progress(
                "once more, with a warm cache" if warm else f"round {number + 1} of {rounds}"
            )
            directory = MachineDirectory(folder / f"home-{min(number, rounds - 1)}")
            meter = OtherCpuMeter(network.postmaster(stack))
            joined = newcomer.join(stack, user, directory, prompt, expected)
            results.other_cpu.append(meter.read())
            (results.warm if warm else results.cold).append(joined)
    return results


def _serve(stack: DevelopmentStack, folder: Path, port: int) -> None:
    """Serve the published weights over HTTP, from an ordinary web server."""
    app = "benchmarks.running.file_server:create_app"
    command = ["-m", "uvicorn", "--factory", app, "--port", str(port)]
    command += ["--app-dir", str(REPOSITORY), "--log-level", "warning"]
    stack.processes.start_python("files", command, {file_server.FOLDER: str(folder)})
    deadline = time.monotonic() + START_LIMIT
    while not port_in_use(port):
        stack.processes.check()
        if time.monotonic() > deadline:
            raise StackError("The web server with the weights does not answer.")
        time.sleep(0.05)


def show(results: JoinResults, model: BenchModel) -> None:
    cold, warm = results.cold, results.warm
    start, end = cold[0].layers
    table = Table(
        title=f"{model.name}: {model.title}\nfrom `far-node start` to the first token through the "
        f"node, layers {start} to {end - 1}; seconds, medians of {len(cold)}",
        title_justify="left",
    )
    table.add_column("phase")
    for column in ("empty cache", "warm cache"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, title in PHASES.items():
        cells = ([each.phases[name] for each in joined] for joined in (cold, warm))
        table.add_row(title, *map(_seconds, cells))
    table.add_section()
    totals = ([each.seconds for each in joined] for joined in (cold, warm))
    table.add_row("all", *map(_seconds, totals))
    console.print(table)
    rates = [each.fetched / each.phases["fetching"] / 1e6 for each in cold]
    console.print(
        f"Fetched: {cold[0].fetched / 1e6:.1f} MB from a web server on this machine, "
        f"{median(rates):.0f} MB/s with hashing them. Same tokens as before: "
        f"{sum(each.same for each in cold + warm)} of {len(cold + warm)}."
    )


def _seconds(values: list[float]) -> str:
    return spread(values, 2) if len(values) > 1 else f"{values[0]:.2f}"


def show_lines(results: JoinResults, installed: Installed | None) -> None:
    """A table of download times over slower lines: computed, not measured."""
    config = dict(footprint.MODELS[LARGE])
    layers, size = half_of(config)
    own_seconds = median(each.seconds - each.phases["fetching"] for each in results.cold)
    wheels = 0
    if installed is not None:
        own_seconds += installed.seconds
        wheels = installed.downloaded + installed.local
    table = Table(
        title=f"Computed, not measured: {layers} of {LARGE}'s {config['num_hidden_layers']} layers "
        f"in bf16, {size / 1e9:.2f} GB, over a line that is full all the time",
        title_justify="left",
    )
    table.add_column("Mbit/s", justify="right")
    if installed is not None:
        table.add_column(f"wheels, {wheels / 1e6:.0f} MB, s", justify="right")
    table.add_column("layers, s", justify="right")
    table.add_column("with all of the above, minutes", justify="right")
    table.add_column(f"layers within {TARGET_SECONDS // 60} minutes", justify="right")
    for megabits in LINK_MEGABITS:
        pip, span = (transfer_seconds(each, megabits) for each in (wheels, size))
        table.add_row(
            str(megabits),
            *([f"{pip:.0f}"] if installed is not None else []),
            f"{span:.0f}",
            f"{(own_seconds + pip + span) / 60:.1f}",
            str(layers_within(config, TARGET_SECONDS - own_seconds - pip, megabits)),
        )
    console.print(table)


def show_installed(installed: Installed) -> None:
    disk, local, downloaded = (
        f"{size / 1e6:.0f} MB"
        for size in (installed.on_disk, installed.local, installed.downloaded)
    )
    console.print(
        f"pip install far-node\\[serve] into a new environment: {installed.seconds:.0f} s, "
        f"{installed.distributions} distributions, {disk} on disk; {local} of wheels that lay on "
        f"this machine, {downloaded} downloaded. The first far-node --help took "
        f"{installed.help_seconds:.1f} s."
    )
    if installed.present:
        console.print(f"[red]There, and not needed: {', '.join(installed.present)}.[/]")
    else:
        console.print(f"Not there: {', '.join(installing.NOT_FOR_NODES)}.")


def main(
    model: Annotated[str, typer.Option(help="S, M or L.")] = "M",
    rounds: Annotated[int, typer.Option(min=1, help="Joins with an empty cache.")] = 5,
    install: Annotated[
        bool, typer.Option("--install", help="Also install the package into a new environment.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure how long a machine takes from `far-node start` to the first token that it served.

    The real stack with three nodes, of which the middle one leaves. A newcomer with a new
    wallet, no identity and an empty cache of weights then joins with the documented command:
    the platform gives it the layers that are missing, it fetches them over HTTP from a web server
    beside it as the operator published them, and works over the relay. As soon as discovery names
    it, a user asks for a generation. Then it leaves, and the next one comes; the last finds the
    cache of the one before.

    Phases come from the node's log; the last two from discovery and from the user's stream. Files
    of Python and PyTorch are in the system's memory, since others have read them before.

    How long fetching half of a 7B model takes over slower lines is computed from its size.
    """
    began = time.monotonic()
    name = model.upper()
    if name not in models.NAMES:
        raise typer.BadParameter(f"--model is one of {', '.join(models.NAMES)}.")
    with workspace() as (folder, report_progress):
        made = models.make(name, DEMO_MODEL, folder / "model")
        results = measure(made, rounds, folder, report_progress)
        installed = None
        if install:
            meter = OtherCpuMeter()
            installed = _installed(folder / "install", report_progress)
            results.other_cpu.append(meter.read())
    show(results, made)
    if installed is not None:
        show_installed(installed)
    show_lines(results, installed)
    measurements = {
        "model": made.title,
        "cold": [asdict(each) for each in results.cold],
        "warm": [asdict(each) for each in results.warm],
        "installed": None if installed is None else asdict(installed),
    }
    write_results(measurements, other_cpu=results.other_cpu, began=began, json_file=json_file)


def _installed(folder: Path, report_progress: Callable[[str], None]) -> Installed:
    report_progress("installing the package into a new environment")
    folder.mkdir()
    try:
        return installing.install(folder)
    except subprocess.CalledProcessError as error:
        console.print(f"[red]benchmark:[/] {error}\n{error.stderr}", soft_wrap=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
