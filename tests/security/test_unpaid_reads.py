"""A stranger reads what is free, again and again, until nobody else is served."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import fastapi.routing
import httpx
import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.http.reading import read_cache
from market import db
from market.settings import Settings
from market.settings.limits import LimitSettings
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    PROVIDER_WALLET,
    WALLET,
    Gateway,
    all_nodes,
    eventually,
    open_gateway,
    problem,
)

FREE = [
    f"/api/nodes/earnings/{PROVIDER_WALLET}",
    f"/api/provider/stats?wallet_address={PROVIDER_WALLET}",
    f"/api/provider/earnings/history?wallet_address={PROVIDER_WALLET}&days=30",
]

LIVE = [
    "/api/inference/models",
    f"/api/discovery/nodes/active/{MODEL_ID}",
    f"/nodes/active/{MODEL_ID}",
    f"/api/discovery/dht/{MODEL_ID}",
]

AT_ONCE = 100

RULES = [name for name, value in LimitSettings() if isinstance(value, str)]
"""All limits of rates."""


@pytest.fixture
async def busy(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """The gateway, whose limits are not what stops these strangers: they have many addresses."""
    limits = dict.fromkeys(RULES, "1000000/hour") | {"read_timeout": 0.5, "read_cache": 60}
    async with open_gateway(make_settings(limits=limits)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


def engine_of(sessions: db.Sessions) -> AsyncEngine:
    engine = sessions.kw["bind"]
    assert isinstance(engine, AsyncEngine)
    return engine


@contextmanager
def statements(sessions: db.Sessions) -> Iterator[list[str]]:
    """What is asked of Postgres by these sessions meanwhile."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    engine = engine_of(sessions).sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("path", FREE)
async def test_many_at_once_make_one_read(busy: Gateway, path: str) -> None:
    with statements(busy.services.reads) as alone:
        assert (await busy.client.get(path.replace(PROVIDER_WALLET, WALLET))).status_code == 200
    with statements(busy.services.reads) as asked, statements(busy.sessions) as elsewhere:
        answers = await asyncio.gather(*(busy.client.get(path) for _ in range(AT_ONCE)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(asked) == len(alone) > 0
    assert elsewhere == []


@pytest.mark.parametrize("path", LIVE)
async def test_many_at_once_make_one_look_at_the_nodes(
    busy: Gateway, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    smembers = busy.redis.smembers

    def counted(key: str) -> Any:
        nonlocal looked
        looked += 1
        return smembers(key)

    monkeypatch.setattr(busy.redis, "smembers", counted)
    answers = await asyncio.gather(*(busy.client.get(path) for _ in range(AT_ONCE)))
    assert {answer.status_code for answer in answers} == {200}
    assert looked == 1


async def test_a_read_that_takes_too_long_is_given_up(busy: Gateway) -> None:
    """Here because somebody holds the table; else because a wallet has millions of rows."""
    async with busy.sessions() as holding:
        await holding.execute(text("LOCK TABLE node_contributions IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        answer = await busy.client.get(FREE[1])
        problem(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() - began < 10
    assert (await busy.client.get(FREE[1])).status_code == 200


async def test_slow_reads_of_many_wallets_leave_everybody_else_served(busy: Gateway) -> None:
    job = await busy.submit()
    async with busy.sessions() as holding:
        await holding.execute(text("LOCK TABLE node_registry IN ACCESS EXCLUSIVE MODE"))
        paths = [f"/api/provider/stats?wallet_address=0x{number:040x}" for number in range(300)]
        reading = [asyncio.create_task(busy.client.get(path)) for path in paths]
        await asyncio.sleep(0.1)
        assert (await busy.client.get(job.url)).status_code == 200
        assert (await busy.client.get("/api/auth/nonce")).status_code == 200
        assert {answer.status_code for answer in await asyncio.gather(*reading)} == {503}
    assert (await busy.client.get(paths[0])).status_code == 200


@asynccontextmanager
async def client_at(gateway: Gateway, address: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(gateway.app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_slow_reads_of_strangers_keep_nobody_from_what_is_not_theirs(
    busy: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here from many addresses, and slow since somebody holds the table."""
    monkeypatch.setattr(read_cache, "MAX_READING", 8)
    monkeypatch.setattr(read_cache, "MAX_READING_OF_CALLER", 2)

    async def ask(number: int) -> int:
        path = f"/api/provider/earnings/history?wallet_address=0x{number:040x}"
        async with client_at(busy, f"198.51.100.{number % 50}") as client:
            return (await client.get(path)).status_code

    async with busy.sessions() as holding:
        await holding.execute(text("LOCK TABLE node_contributions IN ACCESS EXCLUSIVE MODE"))
        reading = [asyncio.create_task(ask(number)) for number in range(100)]
        await eventually(lambda: under_way(busy, "history", 8))
        ours = ("/readyz", "/metrics", "/api/inference/models", "/api/billing/balance")
        for path in ours:
            answer = await busy.client.get(path)
            assert answer.status_code == 200, (path, answer.text)
        assert set(await asyncio.gather(*reading)) == {503}


async def test_one_address_has_few_reads_under_way(
    busy: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_cache, "MAX_READING_OF_CALLER", 2)
    paths = [f"/api/provider/stats?wallet_address=0x{number:040x}" for number in range(20)]
    async with busy.sessions() as holding:
        await holding.execute(text("LOCK TABLE node_contributions IN ACCESS EXCLUSIVE MODE"))
        reading = [asyncio.create_task(busy.client.get(path)) for path in paths]
        await eventually(lambda: under_way(busy, "stats", 2))
        for answer in await asyncio.gather(*reading):
            problem(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
    assert (await busy.client.get(paths[0])).status_code == 200


async def under_way(gateway: Gateway, kind: str, number: int) -> bool:
    kinds = gateway.services.read_cache._kinds
    return kind in kinds and len(kinds[kind].reading) == number


async def test_the_history_of_a_wallet_is_one_read_for_all_spans(busy: Gateway) -> None:
    noon = dt.datetime.now(dt.UTC).replace(hour=12)
    for days_ago in (0, 3, 200):
        job = await busy.submit(max_tokens=1)
        await job.write("a")
        await job.complete()
        async with busy.sessions.begin() as session:
            row = await session.merge(await job.row())
            row.completed_at = noon - dt.timedelta(days=days_ago)
    path = f"/api/provider/earnings/history?wallet_address={PROVIDER_WALLET}&days="
    with statements(busy.services.reads) as asked:
        found = {days: (await busy.client.get(f"{path}{days}")).json() for days in range(1, 366)}
    assert len([each for each in asked if "node_contributions" in each]) == 1
    dates = [(noon - dt.timedelta(days=days_ago)).date().isoformat() for days_ago in (200, 3, 0)]
    for days, first in {1: 2, 2: 2, 3: 1, 199: 1, 200: 0, 365: 0}.items():
        assert [each["date"] for each in found[days]] == dates[first:]
    assert all(float(each["amount_exact"]) == each["amount"] > 0 for each in found[365])


@pytest.mark.parametrize("path", [*FREE, *LIVE, "/api/discovery/dht"])
async def test_an_answer_is_encoded_once(
    busy: Gateway, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await busy.client.get(path)

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("validated or encoded again")

    monkeypatch.setattr(fastapi.routing, "serialize_response", again)
    monkeypatch.setattr(BaseModel, "model_dump_json", again)
    second = await busy.client.get(path)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["content-type"] == "application/json"


async def test_a_read_cannot_write(busy: Gateway) -> None:
    async with busy.services.reads() as session:
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await session.execute(text("DELETE FROM machines"))


# ----- metrics
