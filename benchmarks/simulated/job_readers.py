"""Many readers of one job's events in a process of their own, which does little but to count:
`python -m benchmarks.simulated.job_readers`."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import uvloop

CONNECTING_AT_ONCE = 20
"""Readers whose request has not been answered yet."""

SAMPLED = 20
"""Of so many readers, one notes when each token comes."""

CONNECT_LIMIT = 120.0
"""Seconds that a reader has until its stream begins."""


@dataclass(frozen=True, slots=True)
class ReadingRequest:
    """What a process of readers is told. ``end_limit``: monotonic seconds from all readers being
    there until those that have not seen the end are given up."""

    url: str
    bearer: str
    readers: int
    end_limit: float


@dataclass(frozen=True, slots=True)
class ReadingResult:
    """``opened``: readers whose stream began; ``complete``: those that got every token once and in
    order, and the end. ``tokens``: of each reader; ``arrivals``: of some readers, when each token
    came (monotonic seconds)."""

    opened: int
    complete: int
    tokens: list[int]
    arrivals: list[list[float]]
    refusals: list[str]


class Reader(asyncio.Protocol):
    """Reads an answer by lines, without keeping any. ``begun``: whether its stream was opened."""

    def __init__(self, request: bytes, *, notes_times: bool) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[bool] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self.tokens = 0
        self.in_order = True
        self.ended = False
        self.status = ""
        self.arrivals: list[float] = []
        self._request = request
        self._notes_times = notes_times
        self._rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        if not self.begun.done() and lines:
            self.status = lines[0].decode()
            self.begun.set_result(b" 200 " in lines[0])
        for line in lines:
            if line.startswith(b"id: "):
                self._take(line[4:])

    def connection_lost(self, exc: Exception | None) -> None:
        self.status = self.status or f"lost: {exc}"
        if not self.begun.done():
            self.begun.set_result(False)
        self._finish()

    def _take(self, event_id: bytes) -> None:
        if event_id.endswith(b"-done"):
            self.ended = int(event_id.removesuffix(b"-done")) == self.tokens
            self._finish()
            return
        self.in_order &= int(event_id) == self.tokens + 1
        self.tokens += 1
        if self._notes_times:
            self.arrivals.append(time.monotonic())

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def read(request: ReadingRequest, report_ready: Callable[[int], None]) -> ReadingResult:
    """Open all streams, say when they are there, and follow them to their ends."""
    address = urlsplit(request.url)
    head = (
        f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {request.bearer}\r\n\r\n"
    ).encode()
    loop = asyncio.get_running_loop()
    places = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def open_reader(number: int) -> Reader:
        reader = Reader(head, notes_times=number % SAMPLED == 0)
        async with places:
            await loop.create_connection(lambda: reader, address.hostname, address.port)
            await asyncio.wait([reader.begun], timeout=CONNECT_LIMIT)
        return reader

    readers = await asyncio.gather(*(open_reader(number) for number in range(request.readers)))
    opened = [reader for reader in readers if reader.begun.done() and reader.begun.result()]
    report_ready(len(opened))
    if opened:
        await asyncio.wait([reader.over for reader in opened], timeout=request.end_limit)
    return ReadingResult(
        opened=len(opened),
        complete=sum(reader.in_order and reader.ended for reader in opened),
        tokens=[reader.tokens for reader in opened],
        arrivals=[reader.arrivals for reader in opened if reader.arrivals],
        refusals=[reader.status or "no answer" for reader in readers if reader not in opened],
    )


def main() -> None:
    """Take a request from standard input; print how many readers are there, then the result."""

    def say(line: object) -> None:
        print(json.dumps(line), flush=True)

    request = ReadingRequest(**json.loads(sys.stdin.readline()))
    say(asdict(uvloop.run(read(request, say))))


if __name__ == "__main__":
    main()
