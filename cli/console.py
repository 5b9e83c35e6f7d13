"""The console of the commands, and how a command fails."""

from typing import NoReturn

import typer
from rich.console import Console

console = Console(highlight=False)


def fail(message: object, status: int = 1) -> NoReturn:
    """Say what is wrong and end with an exit status."""
    console.print(f"[red]far-mesh:[/] {message}", soft_wrap=True)
    raise typer.Exit(status)
