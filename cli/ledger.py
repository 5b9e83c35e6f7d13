"""`far-mesh ledger`: the ledger's integrity."""

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from cli.console import console, fail
from market import db
from market.chain.errors import ChainError
from market.clients.postgres import LONG
from market.ledger.integrity_check import IntegrityReport, check_integrity, check_with_chain
from market.settings import Settings

app = typer.Typer(help="The ledger.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Without this, typer would make the only command the group itself."""


@app.command("check")
def check_ledger(
    chain: Annotated[bool, typer.Option(help="Compare with the escrow contract, too.")] = True,
) -> None:
    """Check the ledger in the database of the settings (FAR_DATABASE_URL): exit status 1 if
    anything is wrong."""
    settings = Settings()
    try:
        report = asyncio.run(_checked(settings, chain=chain))
    except ChainError as error:
        fail(f"{error} The ledger alone: --no-chain.")
    _print_report(report)
    if chain and not settings.payments.escrow_contract:
        console.print("Not compared with the chain: no escrow contract is set.")
    if report.violations:
        raise typer.Exit(1)


async def _checked(settings: Settings, *, chain: bool) -> IntegrityReport:
    engine, sessions = db.connect(settings.database_url, limits=LONG)
    try:
        if not chain:
            return await check_integrity(sessions)
        return await check_with_chain(sessions, settings.payments)
    finally:
        await engine.dispose()


def _print_report(report: IntegrityReport) -> None:
    table = Table()
    for name in ("check", "violations", "for example", "expected", "found"):
        table.add_column(name, overflow="fold", justify="right" if name == "violations" else "left")
    for name, count in report.counts.items():
        table.add_row(name, f"[red]{count}[/]" if count else "0")
        for finding in (each for each in report.findings if each.check == name):
            table.add_row("", "", finding.subject, finding.expected, finding.found)
    console.print(table)
    for note in report.notes:
        console.print(note, soft_wrap=True)
    verdict = f"[red]{report.violations} violations.[/]" if report.violations else "Nothing wrong."
    console.print(verdict)
