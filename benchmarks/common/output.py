"""What all benchmarks print and write alike."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import typer
from rich.console import Console

from benchmarks.common import machine
from stack.servers import StackError

WIDTH = 120
"""Columns of a table where nobody looks at a terminal."""

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=WIDTH)


def spread(values: Sequence[float], digits: int = 0, *, bold: bool = False) -> str:
    """The median, and the lowest and highest of the values."""
    low, middle, high = (
        f"{value:.{digits}f}" for value in (min(values), median(values), max(values))
    )
    return f"[bold]{middle}[/] ({low}-{high})" if bold else f"{middle} ({low}-{high})"


@contextmanager
def refusals_shown() -> Iterator[None]:
    """A stack that does not start ends the command with its reason."""
    try:
        yield
    except StackError as error:
        console.print(f"[red]benchmark:[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def at_work(beginning: str = "Starting") -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A folder for the time of a benchmark, and what to call with what is being done now."""
    with (
        tempfile.TemporaryDirectory(prefix="far-bench-") as folder,
        console.status(beginning) as status,
        refusals_shown(),
    ):
        yield Path(folder), status.update


def close(
    measurements: Mapping[str, Any],
    *,
    others: Sequence[float],
    began: float,
    json_file: Path | None,
) -> None:
    """Say on what machine it was measured, and write what was measured.

    ``others``: cores used by other processes, one figure a measurement; ``began``: of the command,
    monotonic seconds.
    """
    seconds = time.monotonic() - began
    console.print(f"{machine.described()}; {seconds:.0f} s in all.")
    if others:
        console.print(machine.others_said(others))
    if json_file is not None:
        content = {"machine": machine.describe(), "seconds": seconds, **measurements}
        json_file.write_text(json.dumps({**content, "others_cores": others}, indent=1))
        console.print(f"Every measurement is in {json_file}.")
