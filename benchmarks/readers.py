"""Logins and heartbeats beside many readers of one job: `python -m benchmarks.readers --help`."""

import asyncio
import datetime as dt
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Annotated

import psutil
import typer
from redis.asyncio import Redis
from rich.table import Table
from sqlalchemy import update

from benchmarks.common.machine import OtherCpuMeter, tree_seconds
from benchmarks.common.output import console, exit_on_stack_error, write_results
from benchmarks.running.gateway import (
    JWT_SECRET,
    MODEL_ID,
    REPOSITORY,
    GatewayServers,
    gateway_servers,
)
from benchmarks.simulated.heartbeats import NodeFleet
from benchmarks.simulated.job_readers import ReadingRequest, ReadingResult
from benchmarks.simulated.logins import WalletLogins
from market import db
from market.identity.tokens import issue_user_token
from market.jobs import live_session
from market.jobs.request_id import new_request_id
from market.jobs.tables import Job, JobStatus
from market.settings.auth import AuthSettings
from mesh import redis_keys, token_stream
from mesh.route_record import RouteRecord

WALLET = "0x" + "ab" * 20
LAYERS = 6
GATEWAY_CORE = 0
START_SECONDS = 180.0
"""Seconds that all readers have to open their streams."""

END_SECONDS = 60.0
"""Seconds that they have after the last token to get the end."""

SETTINGS = {
    "FAR_LIMITS__TRUST_FORWARDED_FOR": "true",
    "FAR_DISCOVERY__NODE_TTL": "120",
}


@dataclass(frozen=True, slots=True)
class ReadingLoad:
    """How many readers follow a job that gives ``rate`` tokens a second for ``seconds``, while so
    many nodes send a heartbeat a second each, and so many wallets a second log in."""

    readers: int
    rate: float
    seconds: float
    nodes: int
    logins: float


@dataclass(frozen=True, slots=True)
class Answers:
    """Milliseconds of what was answered in one phase, and why the rest was not."""

    logins_ms: list[float]
    heartbeats_ms: list[float]
    lost: list[str]


@dataclass(slots=True)
class ReadersResult:
    """Figures of one gateway. ``answers``: by phase; ``delays_ms``: from a token's being written
    until a reader had it, of some readers; ``rss_mb``, ``cores``: of the gateway's process."""

    name: str
    answers: dict[str, Answers] = field(default_factory=dict)
    written: int = 0
    reading: ReadingResult | None = None
    opening_seconds: float = 0.0
    delays_ms: list[float] = field(default_factory=list)
    rss_mb: dict[str, float] = field(default_factory=dict)
    cores: float = 0.0
    redis_connections: int = 0


class ReadersBenchmark:
    """One gateway, on a core of its own where there are several, and all who use it."""

    def __init__(self, load: ReadingLoad, on: GatewayServers, name: str) -> None:
        self._load = load
        self._on = on
        self._redis = Redis.from_url(on.redis_url)
        self._fleet = NodeFleet(on.api_url, MODEL_ID, LAYERS, Random(1))
        self._logins = WalletLogins(on.api_url)
        self.result = ReadersResult(name)

    async def run(self) -> ReadersResult:
        result = self.result
        try:
            for _ in range(self._load.nodes):
                await self._fleet.join(self._fleet.new_node(), 1.0)
            logging_in = asyncio.create_task(self._logins.run(1 / self._load.logins))
            async with self._phase("idle"):
                await asyncio.sleep(self._load.seconds)
            request_id = await self._write_job()
            result.rss_mb["before"] = self._rss()
            began = time.monotonic()
            async with self._phase("opening"):
                readers, opened = await self._open_readers(request_id)
            result.opening_seconds = time.monotonic() - began
            console.print(f"{result.name}: {opened} of {self._load.readers} streams are open")
            cpu = tree_seconds(self._on.api)
            result.rss_mb["streams open"] = self._rss()
            async with self._phase("streaming"):
                times = await self._write_tokens(request_id)
                result.cores = (tree_seconds(self._on.api) - cpu) / (times[-1] - times[0])
                result.redis_connections = (await self._redis.info("clients"))["connected_clients"]
                result.rss_mb["after the last token"] = self._rss()
                await self._end_job(request_id, len(times))
                result.written = len(times)
                result.reading = await self._collect(readers, times)
                logging_in.cancel()
                await self._logins.finish()
                await self._fleet.close()
            result.rss_mb["readers gone"] = self._rss()
        finally:
            await self._logins.finish()
            await self._redis.aclose()
        return result

    @asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[None]:
        """Note what is answered until the end of this context."""
        counts, logins = self._fleet.counts, self._logins
        lists = (logins.times_ms, counts.heartbeats_ms, logins.lost, counts.lost)
        before = [len(values) for values in lists]
        yield
        times, heartbeats, lost, more_lost = (
            values[start:] for values, start in zip(lists, before, strict=True)
        )
        self.result.answers[name] = Answers(times, heartbeats, [*lost, *more_lost])

    def _rss(self) -> float:
        return self._on.api.memory_info().rss / 1e6

    async def _write_job(self) -> str:
        """A job that runs, as its supervisor leaves it when its first epoch has begun."""
        request_id = new_request_id()
        now = dt.datetime.now(dt.UTC)
        engine, sessions = db.connect(self._on.database_url)
        async with sessions.begin() as session:
            session.add(
                Job(
                    request_id=request_id,
                    user_wallet=WALLET,
                    model_id=MODEL_ID,
                    status=JobStatus.ACTIVE,
                    deadline_at=now + dt.timedelta(hours=1),
                    prompt_tokens=1,
                    max_tokens=1_000_000,
                    temperature=0.0,
                    top_p=1.0,
                    seed=0,
                    request_digest=b"",
                    price_per_token_far=Decimal(0),
                    hold_far=Decimal(0),
                )
            )
        await engine.dispose()
        route = RouteRecord(1, 1_000_000, ["node"])
        await live_session.begin_epoch(self._redis, request_id, 1, route, ttl=3600)
        return request_id

    async def _open_readers(self, request_id: str) -> tuple[asyncio.subprocess.Process, int]:
        """Start the readers' process; returns it once all its streams are open or refused."""
        load = self._load
        bearer = issue_user_token(AuthSettings.model_validate({"jwt_secret": JWT_SECRET}), WALLET)
        request = ReadingRequest(
            url=f"{self._on.api_url}/api/inference/jobs/{request_id}/events",
            bearer=bearer,
            readers=load.readers,
            end_limit=2 * load.seconds + END_SECONDS,
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "benchmarks.simulated.job_readers"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**28,
            cwd=REPOSITORY,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        async with asyncio.timeout(START_SECONDS):
            opened: int = json.loads(await process.stdout.readline())
        return process, opened

    async def _write_tokens(self, request_id: str) -> list[float]:
        """Append tokens at the rate, whatever the readers do; returns when each was written."""
        keys = [redis_keys.live_record(request_id), redis_keys.tokens(request_id)]
        times: list[float] = []
        began = time.monotonic()
        for number in range(round(self._load.seconds * self._load.rate)):
            await asyncio.sleep(max(0.0, began + number / self._load.rate - time.monotonic()))
            times.append(time.monotonic())
            await self._redis.eval(  # type: ignore[misc]
                token_stream.APPEND_TOKEN, 2, *keys, "1", str(number), "7", " token"
            )
        return times

    async def _end_job(self, request_id: str, tokens: int) -> None:
        engine, sessions = db.connect(self._on.database_url)
        async with sessions.begin() as session:
            await session.execute(
                update(Job)
                .where(Job.request_id == request_id)
                .values(status=JobStatus.COMPLETED, token_count=tokens)
            )
        await engine.dispose()
        outcome: live_session.JobOutcome = {
            "status": JobStatus.COMPLETED,
            "total_tokens": tokens,
            "cost_far": "0",
            "latency_ms": 0,
            "time_to_first_token_ms": 0,
            "finish_reason": "length",
            "error": None,
            "nodes_used": [],
        }
        await live_session.finish(self._redis, request_id, outcome, ttl=3600)

    async def _collect(
        self, readers: asyncio.subprocess.Process, times: Sequence[float]
    ) -> ReadingResult:
        assert readers.stdout is not None
        found = ReadingResult(**json.loads(await readers.stdout.readline()))
        await readers.wait()
        for arrivals in found.arrivals:
            self.result.delays_ms += [
                1000 * (came - written) for came, written in zip(arrivals, times, strict=False)
            ]
        return found


def measure(load: ReadingLoad, checkout: Path, name: str) -> tuple[ReadersResult, float]:
    """Run the load against a checkout's gateway; returns also the cores that others used."""
    cores = os.sched_getaffinity(0)
    readers = {"FAR_LIMITS__READERS_PER_JOB": str(load.readers)}
    readers["FAR_LIMITS__READERS_PER_WALLET"] = str(load.readers)
    readers["FAR_LIMITS__READERS_PER_PROCESS"] = str(4 * load.readers)
    with gateway_servers({**SETTINGS, **readers}, checkout=checkout) as on:
        if len(cores) > 1:
            _pin(on.api, [GATEWAY_CORE])
            others = sorted(cores - {GATEWAY_CORE})
            root = psutil.Process()
            for process in (root, *root.children(recursive=True)):
                if process.pid != on.api.pid:
                    _pin(process, others)
        meter = OtherCpuMeter()
        try:
            result = asyncio.run(ReadersBenchmark(load, on, name).run())
            return result, meter.read()
        finally:
            os.sched_setaffinity(0, cores)


def _pin(process: psutil.Process, cores: Sequence[int]) -> None:
    """Also the threads that it has by now."""
    with suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)


def show(load: ReadingLoad, results: Sequence[ReadersResult]) -> None:
    table = Table(
        title=f"{load.readers} readers of one job, {load.rate:g} tokens a second for "
        f"{load.seconds:g} s; {load.logins:g} logins and {load.nodes} heartbeats a second",
        title_justify="left",
    )
    for column in ("gateway", "phase"):
        table.add_column(column)
    for column in ("login, ms: p50 / p99 / max", "heartbeat, ms: p50 / p99 / max", "lost"):
        table.add_column(column, justify="right")
    for result in results:
        for phase, answers in result.answers.items():
            table.add_row(
                result.name,
                phase,
                _percentiles(answers.logins_ms),
                _percentiles(answers.heartbeats_ms),
                str(len(answers.lost)),
            )
    console.print(table)
    table = Table(show_header=True)
    table.add_column("")
    for result in results:
        table.add_column(result.name, justify="right")
    for what in (rows := [_figures(load, result) for result in results])[0]:
        table.add_row(what, *(row[what] for row in rows))
    console.print(table)
    for result in results:
        lost = [reason for answers in result.answers.values() for reason in answers.lost]
        lost += result.reading.refusals if result.reading else []
        for reason in sorted(set(lost)):
            console.print(f"{result.name}: {lost.count(reason)} x {reason}", soft_wrap=True)


def _figures(load: ReadingLoad, result: ReadersResult) -> dict[str, str]:
    reading = result.reading
    assert reading is not None
    idle, loaded = result.answers["idle"], result.answers["streaming"]
    return {
        "streams opened": f"{reading.opened} of {load.readers}",
        "opening all of them, s": f"{result.opening_seconds:.1f}",
        f"readers with all {result.written} tokens, in order": str(reading.complete),
        "token to reader, ms: p50 / p99 / max": _percentiles(result.delays_ms),
        "login p99, times idle": _ratio(loaded.logins_ms, idle.logins_ms),
        "heartbeat p99, times idle": _ratio(loaded.heartbeats_ms, idle.heartbeats_ms),
        "gateway, cores": f"{result.cores:.2f}",
        "connections to Redis": str(result.redis_connections),
        **{f"gateway's memory, MB: {when}": f"{mb:.0f}" for when, mb in result.rss_mb.items()},
    }


def _at(milliseconds: Sequence[float]) -> float:
    return quantiles(milliseconds, n=100, method="inclusive")[98]


def _percentiles(milliseconds: Sequence[float]) -> str:
    if len(milliseconds) < 2:
        return "-"
    return f"{median(milliseconds):.1f} / {_at(milliseconds):.1f} / {max(milliseconds):.1f}"


def _ratio(loaded: Sequence[float], idle: Sequence[float]) -> str:
    if min(len(loaded), len(idle)) < 2:
        return "-"
    return f"{_at(loaded) / _at(idle):.1f}"


def main(
    readers: Annotated[int, typer.Option(min=1, max=20_000, help="Streams of one job.")] = 1000,
    rate: Annotated[float, typer.Option(min=0.1, help="Tokens a second.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=2, help="Of each phase.")] = 30.0,
    nodes: Annotated[int, typer.Option(min=1, help="Each sends a heartbeat a second.")] = 20,
    logins: Annotated[float, typer.Option(min=0.1, help="Logins a second.")] = 5.0,
    compare_with: Annotated[
        Path | None, typer.Option(help="Another checkout, whose gateway is measured first.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement to this file.")
    ] = None,
) -> None:
    """Measure how long logins and heartbeats take beside many readers of one job.

    A gateway as in production, with its Redis and Postgres. First without readers; then while they
    open their streams, each from the job's first token; then while tokens come. Where there are
    several cores, the gateway has one for itself, and all others share the rest.
    """
    began = time.monotonic()
    load = ReadingLoad(readers, rate, seconds, nodes, logins)
    checkouts = {"this one": REPOSITORY}
    if compare_with is not None:
        checkouts = {"before": compare_with.resolve(), **checkouts}
    with exit_on_stack_error():
        measured = [measure(load, checkout, name) for name, checkout in checkouts.items()]
    results = [result for result, _ in measured]
    other_cpu = [others for _, others in measured]
    show(load, results)
    measurements = {"load": asdict(load), "gateways": [asdict(result) for result in results]}
    write_results(measurements, other_cpu=other_cpu, began=began, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
