"""Profile of a node's decode steps, by py-spy: `python -m benchmarks.profile --help`."""

import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.running import network
from benchmarks.running.user import User
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

RATE = 250
"""Samples a second."""

PARTS = (
    ("_read_response", "waiting for work (Redis' answer)"),
    ("read_from_socket", "waiting for work (Redis' answer)"),
    ("send_packed_command", "handing results to the kernel"),
    ("pack_command", "packing commands and parsing answers"),
    ("read_response", "packing commands and parsing answers"),
    ("decode", "messages to objects and back"),
    ("encode", "messages to objects and back"),
    ("from_steps", "hidden states to bytes and back"),
    ("to_bytes", "hidden states to bytes and back"),
    ("is_finite", "are all values numbers?"),
    ("linear", "layers: products with weights"),
    ("attend", "layers: attention"),
    ("rms_norm", "layers: norms"),
    ("_FusedLayer.__call__", "layers: rotation, activation, sums"),
    ("RaggedBatch.__init__", "the rows of a batch"),
    ("sample", "head and sampling (edge)"),
    ("SpanModel.logits", "head and sampling (edge)"),
    ("Edge.", "tokens in and out (edge)"),
    ("Receiver.", "the engine's own book-keeping"),
    ("Scheduler.", "the engine's own book-keeping"),
    ("ModelRunner.", "the engine's own book-keeping"),
    ("OutputBatcher.", "the engine's own book-keeping"),
    ("Engine.", "the engine's own book-keeping"),
    ("RedisTransport.", "the transport's own book-keeping"),
    ("ServingLoop.", "the loop and its metrics"),
)
"""Functions, from the inside out, and what they are for: a sample counts for the first frame from
its innermost on that is one of them."""


def main(
    model: Annotated[str, typer.Option(help="S or M.")] = "S",
    at_once: Annotated[int, typer.Option(min=1, help="Generations at once.")] = 1,
    seconds: Annotated[int, typer.Option(min=1, help="How long to sample.")] = 8,
    node: Annotated[int, typer.Option(min=0, max=2, help="0 is the edge, 2 the last.")] = 1,
) -> None:
    """Run the stack with three nodes, let it generate, and sample one node's main thread 250 times
    a second. Needs the development tools (`make .venv/.dev`), and the right to trace another
    process."""
    with tempfile.TemporaryDirectory(prefix="far-profile-") as made:
        folder = Path(made)
        bench = models.make(model.upper(), DEMO_MODEL, folder / "model")
        with DevelopmentStack(network.plan(bench, folder / "data", nodes=3)) as stack:
            user = User(stack)
            prompts = [bench.prompt(16, number) for number in range(at_once)]
            user.generate(prompts, 16)
            samples = folder / "samples"
            profiler = _start_profiler(stack, node, seconds, samples)
            while profiler.poll() is None:
                user.generate(prompts, 64)
        if profiler.returncode:
            raise typer.Exit(profiler.returncode)
        _show(samples.read_text(), f"{bench.name}, {at_once} at once, node {node}")


def _start_profiler(
    stack: DevelopmentStack, node: int, seconds: int, samples: Path
) -> subprocess.Popen[bytes]:
    pid = stack.processes.children[f"node-{node}"].process.pid
    command = ["py-spy", "record", "--nonblocking", "--format", "raw", "--rate", str(RATE)]
    command += ["--pid", str(pid), "--duration", str(seconds), "--output", str(samples)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _show(samples: str, title: str) -> None:
    counts: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        if "ServingLoop.run" in stack:
            counts[_part(stack.split(";"))] += int(count)
    total = sum(counts.values())
    table = Table("", "% of the time", title=title)
    for part, count in counts.most_common():
        table.add_row(part, f"{100 * count / total:.1f}")
    Console().print(table)
    Console().print(f"{total} samples of the main thread.")


def _part(frames: list[str]) -> str:
    for frame in reversed(frames):
        for name, part in PARTS:
            if frame.startswith(name) or f".{name}" in frame.partition(" ")[0]:
                return part
    return "else"


if __name__ == "__main__":
    typer.run(main)
