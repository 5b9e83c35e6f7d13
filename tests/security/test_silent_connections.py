"""A firewall between us and Redis, Postgres or the chain forgets connections without a word."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text

from market import db
from market.clients.postgres import TimeLimits
from market.clients.redis_client import SILENCE_TIMEOUT, open_redis
from market.escrow.event_reader import EscrowEventReader
from market.escrow.reader import EscrowReader
from market.jobs import messaging
from market.jobs.tables import Job
from market.resources import Resources, open_resources
from market.settings import Settings
from mesh import redis_keys, wire
from tests.conftest import OPERATOR_PASSWORD, Chain
from tests.support.chain.escrow import Actions, left
from tests.support.chain.settled_money import (
    SIGNER,
    assert_ledger_equals_chain,
    rich_user,
    served,
    statuses,
)
from tests.support.gateway.api import GENERATE, Gateway, all_nodes, open_gateway, request_body
from tests.support.jobs import (
    POSITIONS,
    add_whole_node,
    opened_requests,
    reload,
    submit,
    write_tokens,
)
from tests.support.market.supervision import balances
from tests.support.network.gate import Gate, gate
from tests.support.worker_process import worker_process
from workers.chain_indexer.indexer import index_events
from workers.exclusive import Progress, Stalled
from workers.settlement import settle_due
from workers.settlement import task as settlement_task

BACK_WITHIN = 15.0
"""Seconds from the moment at which connections fall silent to the moment at which all works."""

PATIENCE = 4 * BACK_WITHIN
"""Seconds for what takes the test's chain most of the time."""

TOKENS = 5


@pytest.fixture
def before_redis(redis_url: str) -> Iterator[Gate]:
    port = urlsplit(redis_url).port
    assert port is not None
    with gate(port) as made:
        yield made


@pytest.fixture
def before_postgres(database_url: str) -> Iterator[Gate]:
    [folder] = parse_qs(urlsplit(database_url).query)["host"]
    with gate(Path(folder) / ".s.PGSQL.5432") as made:
        yield made


@pytest.fixture
def behind(
    make_settings: Callable[..., Settings],
    before_redis: Gate,
    before_postgres: Gate,
    database_url: str,
) -> Settings:
    """Settings by which everything goes through the firewalls."""
    database = urlsplit(database_url).path.removeprefix("/")
    return make_settings(
        redis_url=f"redis://127.0.0.1:{before_redis.port}/0",
        database_url=f"postgresql+asyncpg://postgres@127.0.0.1:{before_postgres.port}/{database}",
    )


async def back(look: Callable[[], Awaitable[bool]]) -> None:
    """Return as soon as ``look`` is true, which it has to be within the limit."""
    give_up = time.monotonic() + BACK_WITHIN
    while not await look():
        assert time.monotonic() < give_up, "not back in time"
        await asyncio.sleep(0.1)


@asynccontextmanager
async def busy_gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway whose pools have connections that were used a moment ago."""
    async with open_gateway(settings) as gateway:
        await gateway.announce(*all_nodes())
        await gateway.deposit("1")
        answers = await asyncio.gather(*(accepted(gateway) for _ in range(8)))
        assert all(answers)
        yield gateway


async def accepted(gateway: Gateway) -> bool:
    """Whether a job is accepted, which takes Redis and Postgres. While they do not answer, the
    gateway says so."""
    answer = await gateway.client.post(
        GENERATE, json=request_body(), headers={"Prefer": "respond-async"}, timeout=BACK_WITHIN
    )
    assert answer.status_code in (202, 503), answer.text
    return answer.status_code == 202


@pytest.mark.parametrize("silent", ["redis", "postgres"])
async def test_the_gateway_is_back_soon(
    behind: Settings,
    redis: Redis,
    before_redis: Gate,
    before_postgres: Gate,
    silent: str,
) -> None:
    wall = before_redis if silent == "redis" else before_postgres
    async with busy_gateway(behind) as gateway:
        wall.forget()

        async def all_are_accepted() -> bool:
            return all(await asyncio.gather(*(accepted(gateway) for _ in range(8))))

        await back(all_are_accepted)


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["redis", "postgres"])
async def test_the_gateway_is_back_after_nothing_got_through_for_a_while(
    behind: Settings,
    redis: Redis,
    before_redis: Gate,
    before_postgres: Gate,
    silent: str,
) -> None:
    wall = before_redis if silent == "redis" else before_postgres
    async with busy_gateway(behind) as gateway:
        wall.block()
        refused = await asyncio.gather(*(accepted(gateway) for _ in range(8)))
        assert not any(refused)
        wall.unblock()

        async def all_are_accepted() -> bool:
            return all(await asyncio.gather(*(accepted(gateway) for _ in range(8))))

        await back(all_are_accepted)


@pytest.mark.slow
@pytest.mark.parametrize("for_a_while", [False, True], ids=["forgotten", "blocked for a while"])
@pytest.mark.parametrize("silent", ["redis", "postgres"])
async def test_a_worker_is_back_soon_and_loses_no_job(
    behind: Settings,
    resources: Resources,
    redis: Redis,
    before_redis: Gate,
    before_postgres: Gate,
    tmp_path: Path,
    silent: str,
    for_a_while: bool,
) -> None:
    """One generation is under way, one waits in the queue, one comes afterwards. What the nodes and
    the gateway do goes by other ways."""
    wall = before_redis if silent == "redis" else before_postgres
    await add_whole_node(redis, free_kv=10 * POSITIONS)
    under_way = await submit(resources)
    with worker_process(behind, tmp_path / "worker.log"):
        await opened(redis, under_way)
        if for_a_while:
            wall.block()
            await asyncio.sleep(4)
        else:
            wall.forget()
        queued = await submit(resources)
        await end(resources, redis, under_way)
        wall.unblock()
        await end_soon(resources, redis, under_way)
        await opened(redis, queued)
        await end_soon(resources, redis, queued)
        later = await submit(resources)
        await opened(redis, later)
        await end_soon(resources, redis, later)
    ended = [await reload(resources, job) for job in (under_way, queued, later)]
    costs = [job.total_cost_far for job in ended if job.total_cost_far is not None]
    assert [job.token_count for job in ended] == [TOKENS] * 3
    assert len(costs) == 3
    assert costs == [max(costs)] * 3
    assert costs[0] >= TOKENS * later.price_per_token_far
    held = sum(job.hold_far for job in ended)
    assert await balances(resources, later) == (held - sum(costs), 0)


async def opened(redis: Redis, job: Job) -> None:
    async def look() -> bool:
        return job.request_id in await opened_requests(redis)

    await back(look)


async def end_soon(resources: Resources, redis: Redis, job: Job) -> None:
    """The job ends, once the edge has written its tokens, which it does now unless it has."""
    if (await reload(resources, job)).status == "active" and not await redis.exists(
        redis_keys.tokens(job.request_id)
    ):
        await end(resources, redis, job)

    async def has_ended() -> bool:
        return (await reload(resources, job)).status == "completed"

    await back(has_ended)


async def end(resources: Resources, redis: Redis, job: Job) -> None:
    """The edge writes all tokens, and says that it has."""
    epoch = (await reload(resources, job)).epoch
    await write_tokens(redis, job, epoch, TOKENS)
    ended = wire.Ended(job.request_id, epoch, "stop", TOKENS)
    await messaging.publish_event(redis, ended, sender="node_0")


async def test_a_command_without_an_answer_is_not_sent_again(
    before_redis: Gate, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been done. One more would count twice."""
    monkeypatch.setattr("market.clients.redis_client.SILENCE_TIMEOUT", 0.5)
    client = open_redis(f"redis://127.0.0.1:{before_redis.port}/0")
    await client.incr("count")
    before_redis.forget()
    with pytest.raises(RedisError):
        await client.incr("count")
    assert await client.incr("count") == 2
    await client.aclose()


async def test_connections_that_were_idle_cost_a_short_wait_and_no_error(
    before_redis: Gate, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("market.clients.redis_client.PING_AFTER", 0.2)
    monkeypatch.setattr("market.clients.redis_client.PING_TIMEOUT", 0.2)
    client = open_redis(f"redis://127.0.0.1:{before_redis.port}/0")
    await asyncio.gather(*(client.incr("count") for _ in range(10)))
    before_redis.forget()
    await asyncio.sleep(0.3)
    async with asyncio.timeout(SILENCE_TIMEOUT - 1):
        assert await client.incr("count") == 11
        opened = before_redis.opened
        await asyncio.gather(*(client.incr("count") for _ in range(10)))
    assert before_redis.opened > opened, "the other silent ones were closed, too"
    await client.aclose()


async def test_a_statement_that_nobody_answers_ends_and_so_do_its_locks(
    behind: Settings, before_postgres: Gate, sessions: db.Sessions
) -> None:
    limits = TimeLimits(statement=1, lock=0.5, idle=1)
    engine, silent = db.connect(behind.database_url, limits=limits)
    async with sessions.begin() as session:
        await session.execute(text("CREATE TABLE counts AS SELECT 1 AS n"))
    began = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011 - of asyncio, without words
        async with silent.begin() as session:
            await session.execute(text("UPDATE counts SET n = 2"))
            before_postgres.forget()
            await session.execute(text("UPDATE counts SET n = 3"))
    async with silent.begin() as session:  # on a new connection
        await asyncio.sleep(0)
        assert await session.scalar(text("SELECT 1")) == 1
    async with asyncio.timeout(BACK_WITHIN), sessions.begin() as session:
        await session.execute(text("UPDATE counts SET n = n + 10"))  # waits for the row's lock
        assert await session.scalar(text("SELECT n FROM counts")) == 11
    assert time.monotonic() - began < BACK_WITHIN
    await engine.dispose()


@pytest.fixture
async def walled(
    make_settings: Callable[..., Settings], redis: Redis, chain: Chain
) -> AsyncIterator[tuple[Resources, Gate]]:
    """A worker's resources, and the firewall before their chain."""
    port = urlsplit(chain.url).port
    assert port is not None
    with gate(port) as wall:
        payments = {
            "escrow_contract": chain.deployment.escrow,
            "rpc_urls": [f"http://127.0.0.1:{wall.port}"],
            "rpc_max_age": 0,
            "rpc_timeout": 4,
            "operator_keyfile": str(chain.keyfile),
            "operator_password": OPERATOR_PASSWORD,
            "release_delay": 0,
            "settle_amount": 0,
            "confirmations": 0,
            "finalized_tag": False,
            "first_block": chain.deployment.block,
        }
        async with open_resources(make_settings(payments=payments)) as opened:
            yield opened, wall


async def test_deposits_are_credited_although_the_chain_fell_silent(
    walled: tuple[Resources, Gate], chain: Chain
) -> None:
    resources, wall = walled
    user = Actions(chain).user(far=3)
    wall.block()

    async def fall_silent() -> None:
        await asyncio.sleep(1)
        wall.unblock()

    async with (
        asyncio.timeout(PATIENCE),
        asyncio.TaskGroup() as tasks,
        EscrowEventReader.from_settings(resources.settings.payments) as reader,
    ):
        tasks.create_task(fall_silent())
        assert await index_events(resources, reader) == 2
    assert await left(resources, user) == (3, 0, 3)


async def test_settlement_pays_once_although_the_chain_fell_silent(
    walled: tuple[Resources, Gate], chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it had taken the transaction: nobody was told, and it is sent once more."""
    monkeypatch.setattr("workers.settlement.task.POLL_SECONDS", 0.01)
    resources, wall = walled
    user = await rich_user(resources, chain)
    await served(resources, user, 9)
    wall.forgets_after = b"eth_sendRawTransaction"
    async with (
        asyncio.timeout(PATIENCE),
        EscrowReader.from_settings(resources.settings.payments) as escrow,
    ):
        assert await settle_due(resources, escrow, SIGNER) is not None
        assert wall.forgets_after is None
        await assert_ledger_equals_chain(resources, escrow, user.address)
    assert await statuses(resources) == ["confirmed"]


@pytest.mark.slow
async def test_a_settler_that_is_cut_off_loses_the_lock_and_ends_before(
    behind: Settings, resources: Resources, before_postgres: Gate
) -> None:
    """Two that sign at once is what the lock is for."""
    async with open_resources(behind) as cut_off:
        ended_at = None

        async def hold() -> None:
            nonlocal ended_at
            async with settlement_task._settler_lock(cut_off) as lock:
                assert lock is not None
                before_postgres.forget()
                progress = Progress(within=60)
                try:
                    await settlement_task._keep_lock(lock, progress)
                finally:
                    ended_at = time.monotonic()

        holding = asyncio.create_task(hold())

        async def is_free() -> bool:
            async with settlement_task._settler_lock(resources) as lock:
                return lock is not None

        await asyncio.sleep(1)
        assert not await is_free()
        await back(is_free)
        assert ended_at is not None
        assert ended_at < time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011 - of asyncio, without words
            await holding


async def test_a_settler_that_makes_no_progress_loses_the_lock(resources: Resources) -> None:
    progress = Progress(within=0)
    async with settlement_task._settler_lock(resources) as lock:
        assert lock is not None
        with pytest.raises(Stalled):
            await settlement_task._keep_lock(lock, progress)
    async with settlement_task._settler_lock(resources) as again:
        assert again is not None
