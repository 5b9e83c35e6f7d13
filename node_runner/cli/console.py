"""How the commands speak: to standard output what was asked for, to standard error the rest."""

import sys

import typer
from rich.console import Console

WIDE = 200
"""Columns for whoever reads through a pipe, and does not want lines broken."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
errors = Console(stderr=True, highlight=False)


def fail(message: str, status: int = 1) -> typer.Exit:
    """Say what is wrong and what to do; to be raised."""
    errors.print(f"[red]far-node:[/] {message}", markup=True)
    return typer.Exit(status)
