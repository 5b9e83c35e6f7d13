"""The console of the commands, and how a command fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from web3.exceptions import Web3Exception

from market.outages import OUTAGES
from mesh.errors import MeshError

console = Console(highlight=False)


def fail(message: object, status: int = 1) -> NoReturn:
    """Say what is wrong and end with an exit status."""
    console.print(f"[red]far-mesh:[/] {escape(str(message))}", soft_wrap=True)
    raise typer.Exit(status)


@contextmanager
def failures_told() -> Iterator[None]:
    """Say in a line what keeps a command from its work: a setting, the chain, Postgres or Redis."""
    try:
        yield
    except ValidationError as error:
        # Not the values: some are secrets.
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        fail(f"The settings are not valid. {'; '.join(wrong)}.")
    except OUTAGES as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        fail(f"Postgres or Redis cannot be used: {reason}. Is it where the settings say?")
    except (MeshError, Web3Exception, ValueError) as error:
        fail(error)
