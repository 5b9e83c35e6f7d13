"""Reads that many ask for at once."""

import asyncio

import pytest

from api.http.reading import read_cache
from api.http.reading.read_cache import ReadCache
from market.errors import Unavailable

ME, YOU = "192.0.2.1", "192.0.2.2"


class Counted:
    """A read that waits until it may end, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        await self.may_end.wait()
        return number


async def test_a_thousand_at_once_are_one_read() -> None:
    cache, read = ReadCache(60), Counted()
    asking = [asyncio.create_task(cache.get(("k",), read, caller=ME)) for _ in range(1000)]
    await asyncio.sleep(0)
    read.may_end.set()
    assert set(await asyncio.gather(*asking)) == {1}
    assert await cache.get(("k",), read, caller=ME) == 1
    assert await cache.get(("other",), read, caller=ME) == 2


async def test_it_is_read_anew_after_its_time() -> None:
    cache, read = ReadCache(0), Counted()
    read.may_end.set()
    assert [await cache.get(("k",), read, caller=ME) for _ in range(3)] == [1, 2, 3]
    kept = ReadCache(60)
    assert [await kept.get(("k",), read, caller=ME, seconds=0) for _ in range(2)] == [4, 5]


async def test_one_that_goes_away_does_not_end_the_others_read() -> None:
    cache, read = ReadCache(60), Counted()
    first, second = (asyncio.create_task(cache.get(("k",), read, caller=ME)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    read.may_end.set()
    assert await second == 1
    assert first.cancelled()


async def test_an_error_goes_to_all_who_wait_and_is_not_kept() -> None:
    cache, calls = ReadCache(60), 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise ValueError(str(calls))

    both = await asyncio.gather(
        cache.get(("k",), fail, caller=ME),
        cache.get(("k",), fail, caller=ME),
        return_exceptions=True,
    )
    assert [str(error) for error in both] == ["1", "1"]
    with pytest.raises(ValueError, match="2"):
        await cache.get(("k",), fail, caller=ME)


async def test_it_does_not_grow_with_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_cache, "MAX_ENTRIES", 10)
    cache, read = ReadCache(60), Counted()
    read.may_end.set()
    for number in range(100):
        await cache.get(("k", number), read, caller=ME)
    assert len(cache._kinds["k"].entries) == 10
    assert await cache.get(("k", 99), read, caller=ME) == 100


async def test_only_so_many_reads_of_a_kind_are_under_way() -> None:
    cache, read = ReadCache(60), Counted()
    asking = [
        asyncio.create_task(cache.get(("k", number), read, caller=str(number)))
        for number in range(read_cache.MAX_READING)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await cache.get(("k", "one more"), read, caller=ME)
    other = asyncio.create_task(cache.get(("other kind",), read, caller=ME))
    read.may_end.set()
    await asyncio.gather(*asking, other)
    assert await cache.get(("k", "one more"), read, caller=ME)


async def test_only_so_many_reads_of_a_caller_are_under_way() -> None:
    cache, read = ReadCache(60), Counted()
    asking = [
        asyncio.create_task(cache.get(("k", number), read, caller=ME))
        for number in range(read_cache.MAX_READING_OF_CALLER)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="your address"):
        await cache.get(("k", "one more"), read, caller=ME)
    # What others have begun, or what is of another kind, this caller may wait for.
    asking += [
        asyncio.create_task(cache.get(("k", "one more"), read, caller=YOU)),
        asyncio.create_task(cache.get(("k", "one more"), read, caller=ME)),
        asyncio.create_task(cache.get(("other kind",), read, caller=ME)),
    ]
    read.may_end.set()
    await asyncio.gather(*asking)
    assert await cache.get(("k", "another"), read, caller=ME)


async def test_one_kind_takes_no_answers_of_another_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_cache, "MAX_ENTRIES", 10)
    cache, read = ReadCache(60), Counted()
    read.may_end.set()
    kept = await cache.get(("kept",), read, caller=ME)
    for number in range(100):
        await cache.get(("k", number), read, caller=ME)
    assert await cache.get(("kept",), read, caller=ME) == kept


async def test_what_is_read_ends_with_the_process() -> None:
    cache, read = ReadCache(60), Counted()
    asking = asyncio.create_task(cache.get(("k",), read, caller=ME))
    await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
