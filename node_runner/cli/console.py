"""The commands' output: what was asked for on standard output, the rest on standard error."""

import sys

import typer
from rich.console import Console
from rich.text import Text

from node_runner.service.exit_codes import CONFIG_ERROR

PIPE_WIDTH = 200
"""Columns for whoever reads through a pipe, and does not want lines broken."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
errors = Console(stderr=True, highlight=False)


def fail(message: str, status: int = CONFIG_ERROR) -> typer.Exit:
    """Say what is wrong and what to do; to be raised."""
    errors.print(Text.assemble(("far-node:", "red"), f" {message}"))
    return typer.Exit(status)
