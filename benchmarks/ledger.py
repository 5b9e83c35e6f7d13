"""Random operations on the ledger from many connections: `python -m benchmarks.ledger --help`."""

import asyncio
import datetime as dt
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import psutil
import typer
import uvloop
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.common.machine import CpuMeter, CpuUse
from benchmarks.common.output import console, workspace, write_results
from benchmarks.simulated.money_movements import (
    ExpectedContract,
    ExpectedJob,
    ExpectedMoney,
    OperationCountdown,
    RandomClient,
    fund,
)
from market import db
from market.clients.postgres import TimeLimits
from market.escrow.tables import ChainCursor
from market.jobs import tables
from market.ledger.integrity_check import IntegrityReport, check_integrity
from market.migrations import upgrade
from market.settlement.tables import Settlement
from stack.servers import Postgres

CONNECTIONS = 64

DEADLINE_AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

ReportProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LedgerRun:
    """Time and CPU time of the operations, and what the integrity check found afterwards."""

    expected: ExpectedMoney
    operations: int
    seconds: float
    cpu: CpuUse
    checking: float
    report: IntegrityReport


async def measure(
    server: Postgres,
    operations: int,
    users: int,
    providers: int,
    seed: int,
    report_progress: ReportProgress,
) -> LedgerRun:
    """Run the operations on an empty database, then check it against the expected money."""
    server.execute("CREATE DATABASE bench")
    url = server.url("bench")
    await upgrade(url)
    # Sixty-four connections wait for each other's rows: that is what is measured.
    limits = TimeLimits(statement=600, lock=None, idle=60)
    engine, sessions = db.connect(url, pool_size=CONNECTIONS, limits=limits)
    expected = ExpectedMoney(
        users=[f"0x{number:040x}" for number in range(users)],
        providers=[f"0xbb{number:038x}" for number in range(providers)],
    )
    report_progress("Funding the users")
    await fund(sessions, expected)
    countdown = OperationCountdown(
        operations, lambda left: report_progress(f"{left} operations to go")
    )
    clients = [
        RandomClient(name, sessions, expected, seed, countdown) for name in range(CONNECTIONS)
    ]
    meter = CpuMeter({"client": [psutil.Process()], "Postgres": [postmaster(server)]})
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run_all())
    seconds = time.perf_counter() - began
    cpu = meter.read()
    report_progress("Writing down the jobs, to check the ledger against them")
    await write_jobs(engine, expected)
    report_progress("Checking")
    began = time.perf_counter()
    report = await check_integrity(sessions, ExpectedContract(expected))
    checking = time.perf_counter() - began
    await engine.dispose()
    return LedgerRun(expected, operations, seconds, cpu, checking, report)


async def write_jobs(engine: AsyncEngine, expected: ExpectedMoney) -> None:
    """Insert the jobs, contributions and batches that belong to the postings, from the
    benchmark's own records."""
    ids = [uuid.UUID(int=number) for number in range(len(expected.jobs))]
    jobs = list(zip(ids, expected.jobs, strict=True))
    settled = {"status": "confirmed", "debits": "{}", "credits": "{}", "fee_units": 0}
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection

        async def copy(table: Any, rows: Iterable[dict[str, object]]) -> None:
            records = list(rows)
            await driver.copy_records_to_table(
                table.__tablename__,
                columns=list(records[0]),
                records=[tuple(record.values()) for record in records],
            )

        await copy(ChainCursor, [{"contract": ExpectedContract.address, "next_block": 1}])
        if expected.batches:
            await copy(
                Settlement,
                ({"id": batch, "block_number": 0, **settled} for batch in expected.batches),
            )
        await copy(tables.Job, (_session(session_id, job) for session_id, job in jobs))
        await copy(
            tables.NodeContribution,
            (
                _contribution(session_id, provider, share)
                for session_id, job in jobs
                for provider, share in job.shares.items()
            ),
        )


def _session(session_id: uuid.UUID, job: ExpectedJob) -> dict[str, object]:
    return {
        "id": session_id,
        "request_id": job.id,
        "user_wallet": job.wallet,
        "model_id": "benchmark",
        "status": job.status,
        "deadline_at": DEADLINE_AT,
        "prompt_tokens": 1,
        "max_tokens": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "request_digest": b"",
        "price_per_token_far": job.hold,
        "hold_far": job.hold,
        "total_cost_far": job.cost if job.status == "completed" else None,
        "fee_far": job.fee if job.status == "completed" else None,
        "settlement_id": job.batch,
    }


def _contribution(session_id: uuid.UUID, provider: str, share: Decimal) -> dict[str, object]:
    return {
        "session_id": session_id,
        "node_id": provider,
        "wallet_address": provider,
        "tokens_contributed": 1,
        "layers": [0],
        "payment_far": share,
    }


def postmaster(server: Postgres) -> psutil.Process:
    """The main process of Postgres, which is no child of this one."""
    return psutil.Process(int((server.folder / "postmaster.pid").read_text().split()[0]))


def show(measured: LedgerRun) -> None:
    """Print the latencies, and what the integrity check found."""
    table = Table(
        title=f"{CONNECTIONS} connections; ms from begin to commit, of operations done once",
        title_justify="left",
    )
    table.add_column("operation", no_wrap=True)
    for column in ("count", "median", "p95", "p99"):
        table.add_column(column, justify="right")
    for kind, seconds in sorted(measured.expected.seconds.items()):
        if len(seconds) > 1:
            cuts = quantiles(seconds, n=100)
            figures = (median(seconds), cuts[94], cuts[98])
            table.add_row(
                kind,
                str(len(seconds)),
                *(f"{1000 * figure:.1f}" for figure in figures),
            )
    console.print(table)
    outcomes = ", ".join(
        f"{count} {how}" for how, count in measured.expected.outcomes.most_common()
    )
    console.print(f"How they were done: {outcomes}.")
    cpu_per_operation = {
        name: f"{1000 * seconds / measured.operations:.2f} ms in the {name}"
        for name, seconds in measured.cpu.seconds.items()
    }
    rate = measured.operations / measured.seconds
    console.print(
        f"[bold]{rate:.0f} operations/s[/]: {measured.operations} in {measured.seconds:.0f} s. "
        f"CPU time of one: {', '.join(cpu_per_operation.values())}."
    )
    report = measured.report
    console.print(
        f"[bold]{report.violations} violations[/] by {len(report.counts)} checks in "
        f"{measured.checking:.0f} s; {len(measured.expected.wrong)} operations that answered "
        "something else than they should."
    )
    for wrong in measured.expected.wrong[:20]:
        console.print(f"[red]{wrong}[/]")
    for found in report.findings:
        console.print(f"[red]{found.check}[/] {found.subject}: {found.expected}, not {found.found}")


def main(
    operations: Annotated[int, typer.Option(min=1000, help="In all.")] = 100_000,
    users: Annotated[int, typer.Option(min=1, help="Wallets that spend.")] = 500,
    providers: Annotated[int, typer.Option(min=3, help="Wallets that earn.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the random operations.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the measurements to this file.")
    ] = None,
) -> None:
    """Move money at random from 64 connections, then check the ledger.

    Holds, captures, releases, deposits, refunds and settlements, on a real Postgres of its own, in
    the way that gateway and workers do them: one transaction each. Some are repeated, some are
    done by two connections at once, some users try to spend what they do not have or did not sign
    for, and some connections are killed in the middle of a transaction or of its commit, after
    which the operation is tried again.

    Meanwhile the benchmark keeps records of its own. At the end the ledger's integrity check runs,
    with sessions, contributions and an escrow contract made from those records: so it compares two
    independent accounts. Exit status 1 if they differ, or if anything was not as it should.
    """
    began = time.monotonic()
    with workspace("Starting Postgres") as (folder, report_progress):
        folder.chmod(0o755)
        server = Postgres(folder / "postgres")
        server.start()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                measured = runner.run(
                    measure(server, operations, users, providers, seed, report_progress)
                )
        finally:
            server.stop()
    show(measured)
    measurements = {
        "operations": operations,
        "seconds": measured.seconds,
        "violations": measured.report.counts,
        "wrong": measured.expected.wrong,
        "cpu_seconds": measured.cpu.seconds,
        "outcomes": measured.expected.outcomes,
    }
    write_results(
        measurements, other_cpu=[measured.cpu.other_cpu], began=began, json_file=json_file
    )
    if measured.report.violations or measured.expected.wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
