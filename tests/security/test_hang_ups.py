"""A user hangs up so that he is billed less than he has read, or than he let be generated."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from market.jobs.reading import token_hub
from tests.support.gateway.api import GENERATE, Gateway, Job, eventually, request_body
from tests.support.gateway.api_served import Served, serve

LONG = "x" * 100_000


async def ask(gateway: Gateway, served: Served) -> asyncio.StreamWriter:
    """A stream of which nothing is read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
    body = json.dumps(request_body(stream=True)).encode()
    headers = {
        "Host": "test",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **gateway.login(),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"POST {GENERATE} HTTP/1.1\r\n{head}\r\n".encode() + body)
    await writer.drain()
    assert reader is not None
    return writer


async def until_first(lines: AsyncIterator[str]) -> None:
    """Read up to the first token."""
    while await anext(lines) != "id: 1":
        pass


async def stopped(gateway: Gateway, job: Job) -> None:
    async def look() -> bool:
        return (await job.row()).cancel_requested

    await eventually(look)
    await gateway.services.finish_background()


async def test_what_was_generated_for_a_client_that_does_not_read_is_billed(
    gateway: Gateway,
) -> None:
    async with serve(gateway) as served:
        writer = await ask(gateway, served)
        job = await gateway.new_job()
        written = 0

        async def look() -> bool:
            nonlocal written
            await job.write(LONG)
            written += 1
            return served.backed_up

        await eventually(look)
        await job.write("a", "b", "c")
        writer.transport.abort()
        await stopped(gateway, job)
    await job.complete("cancelled")
    assert (await job.row()).token_count == written + 3


@pytest.mark.parametrize("how", ["events", "poll"])
async def test_what_was_read_elsewhere_is_billed(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with serve(gateway) as served:
        async with served.client.stream("POST", GENERATE, json=request_body(stream=True)) as answer:
            job = await gateway.new_job()
            await job.write("a")
            lines = answer.aiter_lines()
            await until_first(lines)
            # From its next read on, the gateway reads nothing for the stream.
            monkeypatch.setattr(token_hub, "PAUSE_PER_JOB", 3600)
            await job.write("b")
            await job.write("c", "d")
            if how == "poll":
                assert (await job.poll())["text"] == "abcd"
            else:
                async with served.client.stream("GET", job.url + "/events") as events:
                    await until_first(events.aiter_lines())
        await stopped(gateway, job)
    await job.complete("cancelled")
    assert (await job.row()).token_count == 4
