"""What all benchmarks print and write in the same way."""

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
"""Columns of a table where the output is no terminal."""

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
def exit_on_stack_error() -> Iterator[None]:
    """Turn a StackError into exit status 1, after printing its reason."""
    try:
        yield
    except StackError as error:
        console.print(f"[red]benchmark:[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def workspace(beginning: str = "Starting") -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A temporary folder, and a function that shows on the terminal what is being done now.

    A stack that does not start ends the command: see :func:`exit_on_stack_error`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="far-bench-") as folder,
        console.status(beginning) as status,
        exit_on_stack_error(),
    ):
        yield Path(folder), status.update


def write_results(
    measurements: Mapping[str, Any],
    *,
    other_cpu: Sequence[float],
    began: float,
    json_file: Path | None,
) -> None:
    """Print on what machine was measured, and write the measurements to a JSON file, if given.

    ``other_cpu``: cores used by other processes, one figure a measurement; ``began``: when the
    command began, in monotonic seconds.
    """
    seconds = time.monotonic() - began
    console.print(f"{machine.mesh_summary()}; {seconds:.0f} s in all.")
    if other_cpu:
        console.print(machine.other_cpu_summary(other_cpu))
    if json_file is not None:
        content = {"machine": machine.describe(), "seconds": seconds, **measurements}
        json_file.write_text(json.dumps({**content, "others_cores": other_cpu}, indent=1))
        console.print(f"Every measurement is in {json_file}.")
