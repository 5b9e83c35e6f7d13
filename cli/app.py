"""`far-mesh`: the whole mesh on one machine."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli import contracts, models
from cli.discovery import discovery
from market import db, migrations
from market.chain.errors import ChainError
from market.escrow.escrow_view import EscrowView
from market.ledger.integrity_check import Report, check
from market.settings import Settings
from stack import demo as demonstration
from stack.development_stack import DEMO_MODEL, DEMO_MODEL_ID, Plan, Stack
from stack.servers import StackError, free_port

app = typer.Typer(
    help="Run the whole mesh on this machine: API, worker, nodes, Redis, Postgres and a chain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(contracts.app, name="contracts")
app.add_typer(models.app, name="models")
app.command()(discovery)
ledger_app = typer.Typer(help="The books.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
console = Console(highlight=False)

Model = Annotated[str, typer.Option(help="Folder or hub id of a model that the engine serves.")]
Nodes = Annotated[int, typer.Option(min=1, help="Nodes that share the model's layers.")]


@app.command()
def up(
    model: Model = str(DEMO_MODEL),
    nodes: Nodes = 3,
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    redis_port: Annotated[int, typer.Option(help="Port of Redis.")] = 6399,
    chain_port: Annotated[int, typer.Option(help="Port of the chain's JSON-RPC.")] = 8549,
    data: Annotated[
        Path, typer.Option(help="Data folder; emptied at start and at the end.")
    ] = Path(".far-mesh"),
    price: Annotated[str, typer.Option(help="FAR for a generated token.")] = "0.0001",
    threads: Annotated[int, typer.Option(help="CPU threads of each node.")] = 1,
    dht: Annotated[
        bool, typer.Option("--dht", help="Run the DHT too: seconds more to start, and memory.")
    ] = False,
) -> None:
    """Start everything and keep it running until Ctrl-C."""
    plan = Plan(
        folder=data.resolve(),
        api_port=port,
        redis_port=redis_port,
        chain_port=chain_port,
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        model_id=_model_id(model),
        nodes=nodes,
        price=price,
        node_threads=threads,
        dht=dht,
        environment=demonstration.SETTINGS,
    )
    with _running(plan) as stack:
        _print_urls(stack)
        stack.watch(lambda line: console.print(f"[yellow]{line}[/]"))


@app.command()
def demo(
    prompt: Annotated[str, typer.Option(help="What the model shall continue.")] = (
        demonstration.PROMPT
    ),
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
) -> None:
    """Start everything, act as one user, settle on-chain, stop everything."""
    with tempfile.TemporaryDirectory(prefix="far-mesh-") as folder:
        plan = Plan(
            folder=Path(folder) / "data",
            api_port=free_port(),
            redis_port=free_port(),
            chain_port=free_port(),
            environment=demonstration.SETTINGS,
        )
        with _running(plan) as stack:
            demonstration.run(stack, console, prompt=prompt, max_tokens=max_tokens)
    console.print("Everything is stopped and cleaned up.")


@app.command()
def migrate() -> None:
    """Bring the database of the settings (FAR_DATABASE_URL) to the newest schema."""
    asyncio.run(migrations.upgrade(Settings().database_url))
    console.print("The database is at the newest schema.")


@app.command()
def settle(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the next batch would be; send nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after a pause, once its reason is mended.")
    ] = False,
) -> None:
    """Look at settlement, or end a pause. The workers settle by themselves."""
    if dry_run == resume:
        raise typer.BadParameter("Say --dry-run or --resume.")
    option = "--dry-run" if dry_run else "--resume"
    command = [sys.executable, "-m", "workers.settlement", option]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@ledger_app.command("check")
def check_ledger(
    chain: Annotated[bool, typer.Option(help="Compare with the escrow contract, too.")] = True,
) -> None:
    """Prove the books of the settings (FAR_DATABASE_URL): exit status 1 if anything is wrong."""
    settings = Settings()
    try:
        report = asyncio.run(_checked(settings, chain=chain))
    except ChainError as error:
        console.print(f"[red]far-mesh:[/] {error} The books alone: --no-chain.", soft_wrap=True)
        raise typer.Exit(1) from None
    _print_report(report)
    if chain and not settings.payments.escrow_contract:
        console.print("Not compared with the chain: no escrow contract is set.")
    if report.violations:
        raise typer.Exit(1)


async def _checked(settings: Settings, *, chain: bool) -> Report:
    engine, sessions = db.connect(settings.database_url)
    try:
        if not chain:
            return await check(sessions)
        async with EscrowView.of(settings.payments) as contract:
            return await check(sessions, contract)
    finally:
        await engine.dispose()


def _print_report(report: Report) -> None:
    table = Table()
    for name in ("check", "violations", "for example", "expected", "found"):
        table.add_column(name, overflow="fold", justify="right" if name == "violations" else "left")
    for name, count in report.counts.items():
        table.add_row(name, f"[red]{count}[/]" if count else "0")
        for found in (one for one in report.findings if one.check == name):
            table.add_row("", "", found.subject, found.expected, found.found)
    console.print(table)
    for note in report.notes:
        console.print(note, soft_wrap=True)
    verdict = f"[red]{report.violations} violations.[/]" if report.violations else "Nothing wrong."
    console.print(verdict)


@contextlib.contextmanager
def _running(plan: Plan) -> Iterator[Stack]:
    """The stack, stopped again however the block ends."""
    # Both stop in order, also where a shell started us in the background with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with console.status("Starting ...") as status:

            def say(line: str) -> None:
                status.update(line)
                console.print(f"· {line}")

            stack = Stack(plan, say)
            stack.start()
        try:
            yield stack
        finally:
            with console.status("Stopping everything ..."):
                stack.stop()
    except (StackError, demonstration.DemoError) as error:
        console.print(f"[red]far-mesh:[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Stopped.")


def _print_urls(stack: Stack) -> None:
    plan = stack.plan
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("API", plan.api_url)
    table.add_row("its documentation", f"{plan.api_url}/docs")
    table.add_row("metrics", f"{plan.api_url}/metrics")
    table.add_row("chain (JSON-RPC)", plan.rpc_url)
    table.add_row("FarToken", stack.deployment.token)
    table.add_row("InferenceEscrow", stack.deployment.escrow)
    table.add_row("Redis", plan.redis_url)
    table.add_row("Postgres", stack.database_url)
    table.add_row("model", f"{plan.model_id}: {stack.model.layers} layers on {plan.nodes} nodes")
    table.add_row("logs", str(plan.folder / "logs"))
    console.print("\n[bold]The mesh is up.[/] A development network: it begins empty each time.")
    console.print(table)
    console.print("Ctrl-C stops everything.")


def _model_id(model: str) -> str:
    if Path(model).resolve() == DEMO_MODEL:
        return DEMO_MODEL_ID
    return Path(model).resolve().name if Path(model).is_dir() else model


if __name__ == "__main__":
    app()
