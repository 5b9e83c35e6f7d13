"""`far-mesh ledger`: the ledger's integrity, and what the chain says of it."""

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from cli.console import console, fail, failures_told
from market import db
from market.chain.errors import ChainError
from market.clients.postgres import LONG
from market.escrow.event_reader import EscrowEventReader
from market.ledger.integrity_check import IntegrityReport, check_integrity, check_with_chain
from market.resources import open_resources
from market.settings import Settings
from mesh import log
from workers.chain_indexer import rescan as blocks_again
from workers.chain_indexer.rescan import Rescan

app = typer.Typer(help="The ledger.", no_args_is_help=True)


@app.command("check")
def check_ledger(
    chain: Annotated[bool, typer.Option(help="Compare with the escrow contract, too.")] = True,
) -> None:
    """Check the ledger in the database of the settings (FAR_DATABASE_URL): exit status 1 if
    anything is wrong."""
    with failures_told():
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


@app.command()
def rescan(
    first: Annotated[
        int, typer.Option("--from", min=0, help="Block to begin with; the escrow's own by default.")
    ] = 0,
) -> None:
    """Read blocks again that are indexed, and repair the ledger where it differs from the chain.
    Running workers need not be stopped."""
    with failures_told():
        settings = Settings()
        log.configure(json=settings.log_json)
        found = asyncio.run(_rescanned(settings, first))
    console.print(f"Compared blocks {found.first} to {found.last}.")
    if found.differs_at is None:
        console.print("Nothing differs.")
        return
    console.print(
        f"Block {found.differs_at} differed: {found.reversed} events from there on were reversed, "
        f"and {found.applied} posted.",
        soft_wrap=True,
    )


async def _rescanned(settings: Settings, first: int) -> Rescan:
    async with (
        open_resources(settings) as resources,
        EscrowEventReader.from_settings(settings.payments) as reader,
    ):
        return await blocks_again.rescan(resources, reader, first)


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
