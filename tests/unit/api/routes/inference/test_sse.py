"""What a stream counts as sent: what its connection took."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from starlette.types import Message

from api.routes.inference.sse import EventStream
from api.server.client_connection import EXTENSION
from market.jobs.stop import Reader


@dataclass
class Line:
    """A connection, as the server tells of it."""

    is_closing: bool = False
    is_backed_up: bool = False
    bodies: list[bytes] = field(default_factory=list)
    drained: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, message: Message) -> None:
        if self.is_backed_up:
            await self.drained.wait()
            self.is_backed_up = False
        if message["type"] == "http.response.body" and not self.is_closing:
            self.bodies.append(message["body"])


async def receive() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def stream(line: Line, reader: Reader, *steps: Callable[[], None]) -> list[tuple[int, bool]]:
    """Send a token for each step, which is done before it; what the reader says after each."""
    seen = []

    async def events() -> AsyncIterator[bytes]:
        for step in steps:
            step()
            reader.taken += 1
            yield b"token"
            seen.append((reader.sent, reader.lags))

    scope = {"type": "http", "method": "POST", "extensions": {EXTENSION: line}}
    await EventStream.of(events(), readers=[reader])(scope, receive, line.send)
    return seen


async def until_it_lags(reader: Reader) -> None:
    async with asyncio.timeout(10):
        while not reader.lags:
            await asyncio.sleep(0)


async def test_a_piece_is_sent_when_the_connection_has_taken_it() -> None:
    line, reader = Line(), Reader()
    assert await stream(line, reader, *[lambda: None] * 3) == [(1, False), (2, False), (3, False)]


async def test_what_comes_after_the_client_has_closed_is_not_sent() -> None:
    line, reader = Line(), Reader()

    def close() -> None:
        line.is_closing = True

    assert await stream(line, reader, lambda: None, close, lambda: None) == [(1, False)] * 3
    assert line.bodies.count(b"token") == 1


async def test_a_client_that_does_not_read_lags_until_it_does() -> None:
    line, reader = Line(), Reader()

    def back_up() -> None:
        line.is_backed_up = True

    streaming = asyncio.create_task(stream(line, reader, lambda: None, back_up))
    await until_it_lags(reader)
    assert (reader.sent, reader.taken) == (1, 2)
    line.drained.set()
    assert (await streaming)[-1] == (2, False)


async def test_one_that_closes_without_having_read_lags() -> None:
    line, reader = Line(), Reader()

    def back_up() -> None:
        line.is_backed_up = True

    streaming = asyncio.create_task(stream(line, reader, back_up))
    await until_it_lags(reader)
    line.is_closing = True
    line.drained.set()
    assert await streaming == [(0, True)]
