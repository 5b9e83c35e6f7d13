"""A stranger opens very many streams of its job, or polls it very often, to starve all others of
the gateway's connections, queries and time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import event

from market import resources
from market.jobs import live_session
from market.jobs.live_session import TokenEntry
from market.jobs.reading import pages, token_hub
from market.jobs.reading.pages import Pages
from market.settings import Settings
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    OTHER_WALLET,
    Event,
    Gateway,
    Job,
    all_nodes,
    eventually,
    open_gateway,
    problem,
    request_body,
    texts,
)

READERS = 60
OPENING_AT_ONCE = 10

TOKENS = [f"token {number} " for number in range(30)]


class Readers:
    """Many that follow one job at the same time."""

    def __init__(self, gateway: Gateway, job: Job, number: int = READERS) -> None:
        self._slots = gateway.services.reader_slots
        self._job = job
        self._number = number
        self._tasks: list[asyncio.Task[list[Event]]] = []

    async def open(self) -> None:
        """Open all streams, some at a time."""
        for number in range(1, self._number + 1):
            self._tasks.append(asyncio.create_task(self._job.events()))
            if number % OPENING_AT_ONCE == 0 or number == self._number:
                await eventually(self._all_hold_slots)

    def replay(self) -> None:
        """Open all streams at once, of a job that has ended."""
        self._tasks = [asyncio.create_task(self._job.events()) for _ in range(self._number)]

    async def _all_hold_slots(self) -> bool:
        return self._slots.in_use == len(self._tasks)

    async def texts(self) -> list[str]:
        """What each got; the events' ids are checked."""
        read = await asyncio.gather(*self._tasks)
        for events in read:
            ids = [each.id for each in events]
            assert ids == [*map(str, range(1, len(ids))), f"{len(ids) - 1}-done"]
        return [texts(events) for events in read]


def page_of(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page have so many tokens."""
    for module in (pages, token_hub):
        monkeypatch.setattr(module, "TOKENS_PER_PAGE", tokens)


@pytest.fixture
async def small_gateway(
    make_settings: Callable[..., Settings], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """With fewer connections to Redis than there are readers."""
    monkeypatch.setattr(resources, "MAX_REDIS_CONNECTIONS", READERS // 2)
    async with open_gateway(make_settings()) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


async def calls(redis: Redis, command: str) -> int:
    stats: dict[str, dict[str, int]] = await redis.info("commandstats")
    return stats.get(f"cmdstat_{command}", {"calls": 0})["calls"]


async def test_readers_leave_connections_to_logins(small_gateway: Gateway) -> None:
    job = await small_gateway.submit(max_tokens=100)
    readers = Readers(small_gateway, job)
    await readers.open()
    await job.write("a")
    for _ in range(10):
        answer = await small_gateway.client.get("/api/auth/nonce")
        assert answer.status_code == 200
    await job.complete()
    assert await readers.texts() == ["a"] * READERS


async def test_a_job_is_read_once_however_many_follow_it(gateway: Gateway, redis: Redis) -> None:
    job = await gateway.submit(max_tokens=100)
    readers = Readers(gateway, job)
    await readers.open()

    async def look() -> bool:
        found: dict[str, int] = await redis.info("clients")
        return found["blocked_clients"] == 1

    await eventually(look)
    before = await calls(redis, "xread")
    for token in TOKENS:
        await job.write(token)
    await job.complete()
    assert await readers.texts() == ["".join(TOKENS)] * READERS
    # One for each token at most, and one for each reader that came after the first token.
    assert await calls(redis, "xread") - before <= len(TOKENS) + READERS


async def test_readers_who_wait_do_not_ask_postgres_each(
    gateway: Gateway, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_hub, "POLL_SECONDS", 0.05)
    job = await gateway.submit(max_tokens=100)
    readers = Readers(gateway, job)
    await readers.open()
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "inference_sessions" in statement:
            asked.append(statement)

    engine = gateway.services.engine.sync_engine
    polls = await calls(redis, "xread")
    event.listen(engine, "before_cursor_execute", note)
    try:

        async def look() -> bool:
            return bool(asked) and await calls(redis, "xread") >= polls + 10

        await eventually(look)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert len(asked) < READERS / 2
    await job.complete(summary=False)  # so that Postgres alone knows of the end
    assert await readers.texts() == [""] * READERS


async def test_a_finished_job_is_rendered_once_however_many_replay_it(
    gateway: Gateway, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, rendered = gateway.services.tokens, 0
    render = hub._render

    def counted(request_id: str, entry: TokenEntry) -> bytes:
        nonlocal rendered
        rendered += 1
        return render(request_id, entry)

    monkeypatch.setattr(hub, "_render", counted)
    monkeypatch.setattr(hub._pages, "_render", counted)
    page_of(10, monkeypatch)
    monkeypatch.setattr(pages, "KEPT_SECONDS", 60)
    job = await gateway.submit(max_tokens=100)
    await job.write(*TOKENS, "and the end")
    await job.complete()
    before = await calls(redis, "xread")
    readers = Readers(gateway, job)
    readers.replay()
    assert await readers.texts() == ["".join(TOKENS) + "and the end"] * READERS
    assert rendered == len(TOKENS) + 1
    assert await calls(redis, "xread") - before == 4
    assert texts(await job.events(after="25")) == "".join(TOKENS[25:]) + "and the end"


async def test_replays_leave_turns_to_all_else_and_to_other_wallets(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await gateway.submit(max_tokens=100)
    await job.write(*TOKENS)
    hub = gateway.services.tokens
    of_hub = Pages(hub._live_page, hub._render)
    await of_hub.after(job.id, 0, "attacker")
    given: list[str] = []

    async def replay(owner: str) -> None:
        assert (await of_hub.after(job.id, 0, owner))[1] == len(TOKENS)
        given.append(owner)

    replays = [asyncio.create_task(replay("attacker")) for _ in range(READERS)]
    replays.append(asyncio.create_task(replay("honest")))
    most = before = 0
    while not all(task.done() for task in replays):
        await asyncio.sleep(0)
        most, before = max(most, len(given) - before), len(given)
    assert 1 <= most <= pages.PAGES_AT_ONCE
    assert given.index("honest") <= pages.PAGES_AT_ONCE


async def test_pages_are_forgotten(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    page_of(1, monkeypatch)
    monkeypatch.setattr(pages, "KEPT_BYTES", 1000)
    monkeypatch.setattr(pages, "KEPT_SECONDS", 0.2)
    job = await gateway.submit(max_tokens=100)
    await job.write(*TOKENS)
    hub = gateway.services.tokens
    kept = Pages(hub._live_page, hub._render)
    for position in range(len(TOKENS)):
        assert (await kept.after(job.id, position, "w"))[1] == 1
        assert kept._bytes == sum(len(page.data) for page, _ in kept._kept.values()) <= 1000

    async def nothing_is_kept() -> bool:
        return not kept._kept and not kept._bytes

    await eventually(nothing_is_kept)


async def test_many_polls_of_one_job_are_few_questions(
    gateway: Gateway, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_session, "TOKENS_PER_READ", 10)
    job = await gateway.submit(max_tokens=100)
    await job.write(*TOKENS)
    assert (await job.poll())["text"] == "".join(TOKENS)
    before = await calls(redis, "xread"), await calls(redis, "xrevrange")
    polled = await asyncio.gather(*(job.poll() for _ in range(READERS)))
    assert {each["text"] for each in polled} == {"".join(TOKENS)}
    after = await calls(redis, "xread"), await calls(redis, "xrevrange")
    assert after[0] == before[0]  # the text is not read again
    assert after[1] - before[1] < READERS / 2
    await job.write("more")
    assert (await job.poll())["text"] == "".join(TOKENS) + "more"
    assert await calls(redis, "xread") == after[0] + 1


async def test_a_text_that_redis_has_forgotten_is_forgotten(gateway: Gateway) -> None:
    job = await gateway.submit(max_tokens=100)
    await job.write(*TOKENS)
    await job.complete()
    assert (await job.poll())["text"] == "".join(TOKENS)
    await job.forget()
    assert (await job.poll())["text"] is None


@pytest.fixture
async def narrow_gateway(
    make_settings: Callable[..., Settings], redis: Redis
) -> AsyncIterator[Gateway]:
    """With room for few readers."""
    limits = {"readers_per_job": 3, "readers_per_wallet": 4, "readers_per_process": 12}
    async with open_gateway(make_settings(limits=limits)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        await opened.deposit("1", OTHER_WALLET)
        yield opened


def check_retry(answer: Any, status: int, code: str) -> None:
    problem(answer, status, code)
    assert int(answer.headers["retry-after"]) > 0


async def test_too_many_readers_are_refused_before_their_streams_begin(
    narrow_gateway: Gateway,
) -> None:
    gateway = narrow_gateway
    job, other = await gateway.submit(), await gateway.submit()
    readers = Readers(gateway, job, 3)
    await readers.open()
    check_retry(await gateway.client.get(f"{job.url}/events"), 429, "rate_limited")
    one_more = asyncio.create_task(other.events())

    async def look() -> bool:
        return gateway.services.reader_slots.in_use == 4

    await eventually(look)
    jobs = await gateway.request_ids()
    check_retry(await gateway.client.get(f"{other.url}/events"), 429, "rate_limited")
    for stream in (True, False):  # neither is a job begun that nobody could read
        answer = await gateway.client.post(GENERATE, json=request_body(stream=stream))
        check_retry(answer, 429, "rate_limited")
    assert await gateway.request_ids() == jobs
    # What needs no slot goes on.
    assert (await job.poll())["status"] == "pending"
    answer = await gateway.client.post(GENERATE, json=request_body(), headers=ASYNC)
    assert answer.status_code == 202
    await job.complete()
    await other.complete()
    await readers.texts()
    await one_more
    assert gateway.services.reader_slots.in_use == 0
    assert await other.events()  # there is room again


async def test_a_process_that_is_full_says_when_to_come_back(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    limits = {"readers_per_process": 4}
    async with open_gateway(make_settings(limits=limits)) as gateway:
        await gateway.announce(*all_nodes())
        await gateway.deposit("1")
        await gateway.deposit("1", OTHER_WALLET)
        job = await gateway.submit()
        readers = Readers(gateway, job, 2)
        await readers.open()
        check_retry(await gateway.client.get(f"{job.url}/events"), 503, "unavailable")
        stranger = gateway.login(OTHER_WALLET)  # one wallet does not take all
        answer = await gateway.client.get(f"{job.url}/events", headers=stranger)
        problem(answer, 404, "job_not_found")
        assert gateway.services.reader_slots.in_use == 2
        await job.complete()
        await readers.texts()
