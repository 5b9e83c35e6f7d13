"""Speed by the number of spans and of generations: `python -m benchmarks.growth --help`."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.checkpoints import models
from benchmarks.checkpoints.models import BenchModel
from benchmarks.common import chart
from benchmarks.common.machine import OtherCpuMeter
from benchmarks.common.output import console, spread, workspace, write_results
from benchmarks.running import network
from benchmarks.running.user import User
from stack.development_stack import DevelopmentStack
from stack.plan import DEMO_MODEL

SPANS = (1, 2, 4, 8)
TOKENS = {1: 128, 4: 64, 16: 48, 64: 24}
"""New tokens of each generation, by how many there are at once."""

SINGLES = 3
"""Measurements of one stream in each pass: the hop's cost is a small difference."""

PROMPT = 16
HOP_GOAL = 0.4
"""Milliseconds."""

PAUSE = 0.3
"""Seconds before each measurement: the mesh still writes down how the last job ended."""

OPTIONS = ("--no-speculate", "--kv-gb", "0.25")
"""A step is to bring one token; and eight nodes with the default KV budget would take a small
machine's memory."""


@dataclass(frozen=True, slots=True)
class ScalingSample:
    """One measurement of ``generations`` at once over ``spans``. ``rate``: tokens a second of all
    of them, prompts included, as the user sees it; ``token``: seconds between two tokens of a
    generation, as Redis sees it."""

    number: int
    spans: int
    generations: int
    rate: float
    token: float
    token_ids: list[list[int]]


@dataclass(slots=True)
class ScalingResults:
    """All samples, and the cores that other processes used while each mesh was measured."""

    samples: list[ScalingSample] = field(default_factory=list)
    other_cpu: list[float] = field(default_factory=list)

    def of(self, spans: int, generations: int) -> list[ScalingSample]:
        return [
            sample
            for sample in self.samples
            if (sample.spans, sample.generations) == (spans, generations)
        ]

    def token(self, spans: int, number: int | None = None) -> float:
        """Milliseconds a token with one stream; of one pass or of all."""
        tokens = [s.token for s in self.of(spans, 1) if number in (None, s.number)]
        return 1000 * median(tokens)

    def hops(self, spans: int) -> list[float]:
        """Milliseconds that each hop beyond one span adds to a token, by pass."""
        numbers = sorted({sample.number for sample in self.samples})
        return [
            (self.token(spans, number) - self.token(1, number)) / (spans - 1) for number in numbers
        ]

    def same(self, spans: int) -> str:
        """How many answers have the tokens that they have over one span."""
        pairs = [
            (answer, expected)
            for generations in TOKENS
            for sample in self.of(spans, generations)
            for answer, expected in zip(
                sample.token_ids, self.of(1, generations)[0].token_ids, strict=True
            )
        ]
        return f"{sum(answer == expected for answer, expected in pairs)} of {len(pairs)}"


def measure(
    model: BenchModel, passes: int, folder: Path, report_progress: Callable[[str], None]
) -> ScalingResults:
    results = ScalingResults()
    for number in range(1, passes + 1):
        for spans in SPANS if number % 2 else reversed(SPANS):
            step = f"pass {number} of {passes}, {spans} spans"
            report_progress(f"{step}: starting the nodes")
            plan = network.plan(model, folder / "data", nodes=spans, node_options=OPTIONS)
            with DevelopmentStack(plan) as stack:
                user = User(stack)
                report_progress(f"{step}: warming up")
                user.generate([model.prompt(PROMPT)] * 4, 8)
                meter = OtherCpuMeter(network.postmaster(stack))
                for generations in [*[1] * (SINGLES - 1), *TOKENS]:
                    report_progress(f"{step}: {generations} at once")
                    results.samples.append(_measure_sample(model, user, number, spans, generations))
                results.other_cpu.append(meter.read())
    return results


def _measure_sample(
    model: BenchModel, user: User, number: int, spans: int, generations: int
) -> ScalingSample:
    time.sleep(PAUSE)
    prompts = [model.prompt(PROMPT, prompt) for prompt in range(generations)]
    served = user.generate(prompts, TOKENS[generations])
    token = (served.pipeline.last - served.pipeline.first) / (TOKENS[generations] - 1)
    return ScalingSample(number, spans, generations, served.user.overall, token, served.token_ids)


def show(results: ScalingResults, model: BenchModel, passes: int) -> None:
    table = Table(
        title=f"{model.title}\ntokens/s of all generations together (user), medians of {passes} "
        "passes; no draft tokens",
        title_justify="left",
    )
    for column in ("spans", *(f"{generations} at once" for generations in TOKENS)):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("ms a token", "a hop adds", "same"):
        table.add_column(column, justify="right", no_wrap=True)
    for spans in SPANS:
        rates = [[s.rate for s in results.of(spans, generations)] for generations in TOKENS]
        table.add_row(
            str(spans),
            *(f"{median(rate):.0f}" for rate in rates),
            f"{results.token(spans):.2f}",
            "" if spans == 1 else spread(results.hops(spans), 2, bold=True),
            results.same(spans),
        )
    console.print(table)
    console.print(
        "Ms a token: one stream, as Redis sees it. A hop adds: what a token takes beyond that over "
        f"one span, by further span (goal: at most {HOP_GOAL} ms). Same: answers with the tokens "
        "that they have over one span."
    )


def draw(results: ScalingResults, file: Path) -> None:
    rates = {
        f"{spans} span{'s' if spans > 1 else ''}": {
            generations: median(s.rate for s in results.of(spans, generations))
            for generations in TOKENS
        }
        for spans in SPANS
    }
    tokens = {"measured": {spans: results.token(spans) for spans in SPANS}}
    tokens[f"{HOP_GOAL} ms a hop"] = {
        spans: results.token(1) + HOP_GOAL * (spans - 1) for spans in SPANS
    }
    chart.lines(
        file,
        [
            ("All generations", "generations at once", "tokens/s", rates),
            ("One stream", "spans", "ms a token", tokens),
        ],
    )


def main(
    passes: Annotated[int, typer.Option(min=1, help="Measurements of each mesh.")] = 3,
    plot: Annotated[
        Path | None, typer.Option(help="Draw a chart: a file such as growth.svg.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure a model over 1, 2, 4 and 8 spans, with 1, 4, 16 and 64 generations at once.

    The model has the demo model's shape and random weights, but eight layers, so that eight nodes
    can share it. Each pass starts a mesh of each size anew, from few nodes to many, the next pass
    from many to few. Nodes make no draft tokens here: a step brings one token.

    Tokens a second: of all generations together, from the requests on, prompts of 16 tokens
    included, as a client sees it that streams all of them over HTTP.

    What a hop adds: the time between two tokens of one stream, as Redis sees it, with S spans less
    that with one span, divided by S - 1. The layers are the same; what is added is messages through
    Redis, waking the next process, and its cold caches. With more nodes than cores there is
    nothing to gain from many spans but memory.

    Tokens are compared with those over one span.
    """
    began = time.monotonic()
    with workspace() as (folder, report_progress):
        model = models.make("S8", DEMO_MODEL, folder / "model")
        results = measure(model, passes, folder, report_progress)
    show(results, model, passes)
    if plot is not None:
        draw(results, plot)
        console.print(f"The chart is in {plot}.")
    measurements = {
        "model": model.title,
        "tokens": TOKENS,
        "hop_ms": {spans: results.hops(spans) for spans in SPANS[1:]},
        "samples": [
            {name: value for name, value in asdict(sample).items() if name != "token_ids"}
            for sample in results.samples
        ],
    }
    write_results(measurements, other_cpu=results.other_cpu, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
