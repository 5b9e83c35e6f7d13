"""The hub gives every reader each token once and in order, whenever the reader comes."""

import asyncio

import pytest
from redis.asyncio import Redis

from market.errors import Unavailable
from market.jobs.live_session import EndEntry, TokenEntry
from market.jobs.reading import followed_job, pages, token_hub
from market.jobs.reading.token_hub import TokenHub
from mesh import redis_keys, token_stream
from tests.support.gateway.api import PATIENCE, Gateway, Job, eventually


def rendered(texts: list[str]) -> bytes:
    return b"".join(text.encode() + b";" for text in texts)


@pytest.fixture
def hub(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> TokenHub:
    """The gateway's, with tokens as short as a test wants them."""

    def render(request_id: str, entry: TokenEntry) -> bytes:
        return entry.text.encode() + b";"

    monkeypatch.setattr(gateway.services.tokens, "_render", render)
    monkeypatch.setattr(gateway.services.tokens._pages, "_render", render)
    return gateway.services.tokens


class Reader:
    """Follows a job until it ends."""

    def __init__(self, hub: TokenHub, job: Job, after: int = 0) -> None:
        self.data = b""
        self.end: EndEntry | None = None
        self._following = hub.follow(job.id, f"{after}-0")
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for piece in self._following:
            if isinstance(piece, EndEntry):
                self.end = piece
            else:
                self.data += piece

    async def has(self, texts: list[str]) -> None:
        async def look() -> bool:
            return self.data == rendered(texts)

        await eventually(look)


async def test_readers_who_come_at_any_time_get_every_token(
    gateway: Gateway, hub: TokenHub
) -> None:
    job = await gateway.submit(max_tokens=100)
    texts = [str(number) for number in range(40)]
    readers = []
    for number, text in enumerate(texts):
        readers.append((number, Reader(hub, job, number)))
        readers.append((0, Reader(hub, job)))
        await job.write(text)
    await job.complete()
    readers.append((7, Reader(hub, job, 7)))
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(reader.task for _, reader in readers))
    assert [reader.data for _, reader in readers] == [rendered(texts[at:]) for at, _ in readers]
    assert {reader.end.entry_id for _, reader in readers if reader.end} == {"40-1"}


async def test_a_reader_that_lags_reads_what_is_not_kept(
    gateway: Gateway, hub: TokenHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_job, "KEPT_BYTES", 10)
    monkeypatch.setattr(token_hub, "ENTRIES_PER_READ", 7)
    monkeypatch.setattr(pages, "TOKENS_PER_PAGE", 7)
    job = await gateway.submit(max_tokens=100)
    texts = [str(number) for number in range(60)]
    quick = Reader(hub, job)
    slow = hub.follow(job.id)
    await job.write(texts[0])
    data = await anext(slow)
    await job.write(*texts[1:])
    await quick.has(texts)
    await job.complete()
    async for piece in slow:
        data += piece if isinstance(piece, bytes) else b""
    assert data == rendered(texts)
    await quick.task


async def test_a_further_job_is_followed_at_once_while_others_are_silent(
    gateway: Gateway, hub: TokenHub
) -> None:
    """The read that waits for the others' tokens is woken, and begins again with the new one."""
    jobs = [await gateway.submit() for _ in range(3)]
    readers = []
    for job in jobs:
        woken_by = hub._wakeup_id
        readers.append(Reader(hub, job))

        async def woken(woken_by: str = woken_by) -> bool:
            return hub._wakeup_id != woken_by

        await eventually(woken)
        await job.write("a")
        await readers[-1].has(["a"])
    for reader in readers:
        reader.task.cancel()
    await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)
    assert not hub._jobs


async def test_readers_of_a_lost_redis_are_sent_away_and_come_back(
    gateway: Gateway, hub: TokenHub, redis: Redis
) -> None:
    job = await gateway.submit()
    readers = [Reader(hub, job) for _ in range(5)]
    await job.write("a")
    for reader in readers:
        await reader.has(["a"])
    await redis.client_kill_filter(_type="normal", skipme=True)
    errors = await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)
    assert [type(error) for error in errors] == [Unavailable] * 5
    again = Reader(hub, job, 1)
    await job.write("b")
    await again.has(["b"])
    await job.complete()
    await again.task
    assert again.end is not None


async def test_a_stream_that_cannot_be_read_is_one_jobs_trouble(
    gateway: Gateway, hub: TokenHub, redis: Redis
) -> None:
    broken, whole = await gateway.submit(), await gateway.submit()
    readers = Reader(hub, broken), Reader(hub, whole)
    await broken.write("a")
    await whole.write("a")
    for reader in readers:
        await reader.has(["a"])
    await redis.xadd(redis_keys.tokens(broken.id), {"i": "x", "t": b"\xff"}, id="2-0")
    with pytest.raises(Unavailable):
        await readers[0].task
    await whole.write("b")
    await whole.complete()
    await readers[1].task
    assert readers[1].data == rendered(["a", "b"])


async def test_who_leaves_is_not_followed(gateway: Gateway, hub: TokenHub) -> None:
    job = await gateway.submit()
    following = hub.follow(job.id, token_stream.START)
    asking = asyncio.ensure_future(anext(following))
    await job.write("a")
    assert await asking == b"a;"
    assert job.id in hub._jobs
    await following.aclose()  # type: ignore[attr-defined]
    assert job.id not in hub._jobs
