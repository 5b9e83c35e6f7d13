"""Speed of the mesh and of plain transformers: `python -m benchmarks.speed --help`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.checkpoints import models
from benchmarks.common.output import console, workspace
from benchmarks.side_by_side import report
from benchmarks.side_by_side.measure import Effort, measure
from stack.plan import DEMO_MODEL

EFFORTS = {
    "S": Effort(rounds=9, single=128, at_once=64),
    "M": Effort(5, 128, 64),
    "L": Effort(3, 16, 8),
}
USUAL = ("S", "M")
QUICK = Effort(rounds=1, single=16, at_once=8)


def main(
    model: Annotated[
        list[str] | None,
        typer.Option(help="S, M or L; may be given more than once. S and M if not given."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Measurements of each side; 9 on S, 5 on M, 3 on L.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short round: does it run? The figures say little.")
    ] = False,
    speculate: Annotated[
        bool, typer.Option(help="Nodes make draft tokens, as by default. M's text repeats itself.")
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Compare the mesh with plain `transformers.generate`, one thread a process.

    Three models: S, the demo model (without its end token, so that both sides generate equally
    much); M, a Llama of 98M random weights that is made on the spot; and L, 1100M random weights in
    TinyLlama's shape, only if asked for: it takes 10 GB of memory and about eight minutes, and its
    4.4 GB of weights are kept in the temporary folder. All in float32, greedy.

    Two sides: plain is one process that calls generate(). The mesh is the real stack (API, worker,
    Redis, Postgres, chain) with three nodes of a third of the layers each, asked over HTTP by a
    client in this process. They take turns, several rounds; the figures are medians.

    Three figures: tokens/s of one stream (128 tokens after a prompt of 16, counted from the first
    token on; 16 on L); time to the first token of a prompt of 512; and tokens/s with 8 generations
    at once (64 tokens each, 8 on L, counted from the request on; plain: one batch of 8).

    Two clocks on the mesh: the user's (request sent, tokens read from the stream of events), and
    the pipeline's (Redis: prompt in the first node's inbox, tokens in their streams).
    """
    began = time.monotonic()
    names = [name.upper() for name in model or USUAL]
    if not set(names) <= set(EFFORTS):
        raise typer.BadParameter(f"--model is one of {', '.join(EFFORTS)}.")
    results = []
    with workspace() as (folder, update):
        for name in names:
            place = folder / name
            update(f"{name}: making the checkpoint")
            made = models.make(name, DEMO_MODEL, place / "model")
            effort = QUICK if quick else EFFORTS[name]
            effort = Effort(rounds or effort.rounds, effort.single, effort.at_once)

            def report_progress(step: str, name: str = name) -> None:
                update(f"{name}: {step}")

            options = () if speculate else ("--no-speculate",)
            measured = measure(made, effort, place / "data", report_progress, options)
            results.append(report.SpeedResult(made, measured))
    seconds = time.monotonic() - began
    report.show(console, results, seconds)
    if json_file is not None:
        json_file.write_text(report.as_json(results, seconds))
        console.print(f"Every measurement is in {json_file}.")


if __name__ == "__main__":
    typer.run(main)
