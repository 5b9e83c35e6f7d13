"""`far-mesh`: the command tree."""

import asyncio

import typer

from cli import contracts, ledger, models
from cli.console import console
from cli.discovery import discovery
from cli.settle import settle
from market import migrations
from market.settings import Settings
from stack.commands import chat, demo, up

app = typer.Typer(
    help="Run the whole mesh on this machine: API, worker, nodes, Redis, Postgres and a chain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(up)
app.command()(demo)
app.command()(chat)
app.add_typer(contracts.app, name="contracts")
app.add_typer(models.app, name="models")
app.command()(discovery)
app.add_typer(ledger.app, name="ledger")
app.command()(settle)


@app.command()
def migrate() -> None:
    """Bring the database of the settings (FAR_DATABASE_URL) to the newest schema."""
    asyncio.run(migrations.upgrade(Settings().database_url))
    console.print("The database is at the newest schema.")


if __name__ == "__main__":
    app()
