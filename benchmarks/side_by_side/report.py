"""Tables and JSON of the speed benchmark."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints.models import BenchModel
from benchmarks.common import machine
from benchmarks.common.timing import TokenTiming
from benchmarks.side_by_side.measure import AT_ONCE, LONG_PROMPT, NODES, SpeedRound


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """All rounds of a model, by case."""

    model: BenchModel
    rounds: dict[str, list[SpeedRound]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: what is measured, and how it follows from a timing."""

    title: str
    case: str
    of: Callable[[TokenTiming], float]
    digits: int = 1


FIGURES = (
    Figure("one stream, tokens/s", "single", lambda timing: timing.decoding),
    Figure(
        f"first token of a {LONG_PROMPT}-token prompt, ms",
        "first",
        lambda timing: timing.first * 1000,
        0,
    ),
    Figure(f"{AT_ONCE} at once, tokens/s", "at_once", lambda timing: timing.overall),
)


def show(console: Console, results: Sequence[SpeedResult], seconds: float) -> None:
    """Print tables of speed and CPU time, and the machine."""
    for result in results:
        console.print(_speed(result))
        console.print(_against_one_stream(result) + "\n")
    console.print(_cpu(results))
    console.print(
        f"\n{machine.mesh_summary()}, {NODES} nodes, Redis over loopback; {seconds:.0f} s in all."
    )
    console.print(_other_cpu(results))


def as_json(results: Sequence[SpeedResult], seconds: float) -> str:
    """Everything that was measured, with the medians that the table shows."""
    return json.dumps(
        {
            "machine": machine.describe(),
            "nodes": NODES,
            "threads_per_process": 1,
            "seconds": seconds,
            "models": {
                result.model.name: {
                    "title": result.model.title,
                    "figures": {figure.case: _medians(result, figure) for figure in FIGURES},
                    "rounds": {
                        case: [asdict(one) for one in rounds]
                        for case, rounds in result.rounds.items()
                    },
                }
                for result in results
            },
        },
        indent=1,
    )


def _speed(result: SpeedResult) -> Table:
    count = len(result.rounds["single"])
    table = Table(
        title=f"{result.model.name}: {result.model.title}\nmedians of {count}, float32, greedy",
        title_justify="left",
    )
    table.add_column("")
    for name in ("plain", "mesh: user", "of plain", "mesh: pipeline", "of plain", "same tokens"):
        table.add_column(name, justify="right")
    for figure in FIGURES:
        medians = _medians(result, figure)
        table.add_row(
            figure.title,
            f"{medians['plain']:.{figure.digits}f}",
            f"{medians['user']:.{figure.digits}f}",
            _ratio(result, figure, "user"),
            f"{medians['pipeline']:.{figure.digits}f}",
            _ratio(result, figure, "pipeline"),
            _same(result.rounds[figure.case]),
        )
    return table


def _against_one_stream(result: SpeedResult) -> str:
    at_once = _medians(result, FIGURES[-1])
    one = _medians(result, FIGURES[0])["plain"]
    return (
        f"Of plain's one stream: plain with a batch of {AT_ONCE} {at_once['plain'] / one:.2f}, "
        f"the mesh with {AT_ONCE} at once {at_once['user'] / one:.2f} (user), "
        f"{at_once['pipeline'] / one:.2f} (pipeline)."
    )


def _medians(result: SpeedResult, figure: Figure) -> dict[str, float]:
    return {
        side: median(figure.of(getattr(one, side)) for one in result.rounds[figure.case])
        for side in ("plain", "user", "pipeline")
    }


def _ratio(result: SpeedResult, figure: Figure, side: str) -> str:
    """Ratio of the medians, and between which ratios the single rounds lay."""
    medians = _medians(result, figure)
    by_round = [
        figure.of(getattr(one, side)) / figure.of(one.plain) for one in result.rounds[figure.case]
    ]
    ratio = medians[side] / medians["plain"]
    return f"[bold]{ratio:.2f}[/] ({min(by_round):.2f}-{max(by_round):.2f})"


def _same(rounds: Sequence[SpeedRound]) -> str:
    return f"{sum(one.equal for one in rounds)} of {sum(one.prompts for one in rounds)}"


def _cpu(results: Sequence[SpeedResult]) -> Table:
    """A table of CPU time for each new token, in milliseconds, by process."""
    table = Table(title="CPU time a token, ms", title_justify="left")
    table.add_column("")
    columns = [(result, case) for result in results for case in ("single", "at_once")]
    for result, case in columns:
        title = "one stream" if case == "single" else f"{AT_ONCE} at once"
        table.add_column(f"{result.model.name}: {title}", justify="right")
    parts = [name for name in results[0].rounds["single"][0].mesh_cpu.seconds if name != "plain"]
    for part in parts:
        table.add_row(part, *(f"{_mesh_ms(*column, part):.2f}" for column in columns))
    table.add_section()
    table.add_row(
        "mesh in all",
        *(f"{sum(_mesh_ms(*column, part) for part in parts):.2f}" for column in columns),
    )
    table.add_row("plain", *(f"{_plain_ms(*column):.2f}" for column in columns))
    return table


def _mesh_ms(result: SpeedResult, case: str, part: str) -> float:
    return 1000 * median(
        one.mesh_cpu.seconds[part] / one.user.tokens for one in result.rounds[case]
    )


def _plain_ms(result: SpeedResult, case: str) -> float:
    return 1000 * median(
        one.plain_cpu.seconds["plain"] / one.plain.tokens for one in result.rounds[case]
    )


def _other_cpu(results: Sequence[SpeedResult]) -> str:
    """A sentence about the cores that processes other than the benchmark's used."""
    shares = [
        use.other_cpu
        for result in results
        for rounds in result.rounds.values()
        for one in rounds
        for use in (one.plain_cpu, one.mesh_cpu)
    ]
    return machine.other_cpu_summary(shares)
