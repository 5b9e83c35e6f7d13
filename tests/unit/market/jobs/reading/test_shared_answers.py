"""Questions that are put to the source once for all who ask at one time."""

import asyncio
from collections.abc import Callable

import pytest

from market.jobs.reading.shared_answers import SharedAnswers


class Source:
    """Answers with the number of the question, once it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self, key: str) -> int:
        self.asked.append(key)
        number = len(self.asked)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return number


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_who_asks_together_shares_one_answer() -> None:
    source = Source()
    shared = SharedAnswers(source.ask)
    source.gate.set()
    assert set(await asyncio.gather(*(shared.get("a") for _ in range(50)))) == {1}
    assert source.asked == ["a"]


async def test_who_comes_while_an_answer_is_made_gets_the_next_one() -> None:
    """The first one may be older than their question."""
    source = Source()
    shared = SharedAnswers(source.ask)
    first = asyncio.create_task(shared.get("a"))
    await until(lambda: source.asked)
    later = [asyncio.create_task(shared.get("a")) for _ in range(50)]
    await asyncio.sleep(0)
    source.gate.set()
    assert await first == 1
    assert set(await asyncio.gather(*later)) == {2}


async def test_keys_do_not_wait_for_each_other() -> None:
    source = Source()
    shared = SharedAnswers(source.ask)
    asking = [asyncio.create_task(shared.get(key)) for key in "ab"]
    await until(lambda: len(source.asked) == 2)
    source.gate.set()
    assert await asyncio.gather(*asking) == [1, 2]


async def test_an_error_is_shared_and_not_kept() -> None:
    source = Source()
    source.gate.set()
    source.error = ValueError()
    shared = SharedAnswers(source.ask)
    errors = await asyncio.gather(*(shared.get("a") for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [ValueError] * 3
    source.error = None
    assert await shared.get("a") == 2


async def test_who_goes_away_takes_nobodys_answer() -> None:
    source = Source()
    shared = SharedAnswers(source.ask)
    leaving, staying = (asyncio.create_task(shared.get("a")) for _ in range(2))
    await until(lambda: source.asked)
    leaving.cancel()
    source.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await staying == 1
    assert shared._running == shared._next == {}
