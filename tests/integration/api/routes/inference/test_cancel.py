"""Ending a generation early: by asking, or by hanging up."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from decimal import Decimal

import httpx
import pytest

from market import ledger
from market.jobs import cancellation, messaging
from market.jobs.reading import token_hub
from mesh import redis_keys, token_stream
from mesh.wire import Cancel
from tests.support.gateway.api import (
    GENERATE,
    OTHER_WALLET,
    WALLET,
    Gateway,
    Job,
    eventually,
    problem,
    request_body,
)
from tests.support.gateway.api_served import serve

WRITTEN = re.compile(r"id: 2\r?\n")


@pytest.fixture
def no_cancel_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody works on these jobs, so there is no end to wait for."""
    monkeypatch.setattr(cancellation, "CANCEL_WAIT", 0.01)


async def events_of(gateway: Gateway, job: Job) -> list[object]:
    """The events that the job's supervisor reads."""
    _, events = await messaging.read_events(gateway.redis, job.id, token_stream.START, wait=0)
    return [event.message for event in events]


async def is_cancel_requested(job: Job) -> bool:
    return (await job.row()).cancel_requested


async def test_cancelling_charges_for_delivered_tokens_only(gateway: Gateway) -> None:
    job = await gateway.submit(max_tokens=100)
    await job.write("a", "b", "c")

    async def supervise() -> None:
        _, events = await messaging.read_events(gateway.redis, job.id, token_stream.START, wait=10)
        assert [type(event.message) for event in events] == [Cancel]
        await job.complete("cancelled")

    supervising = asyncio.create_task(supervise())
    answer = await gateway.client.delete(job.url)
    await supervising
    assert answer.status_code == 200
    result = answer.json()
    assert (result["status"], result["finish_reason"]) == ("completed", "cancelled")
    assert (result["text"], result["tokens_generated"]) == ("abc", 3)
    assert result["cost_far_exact"] == "0.00042", "and the prompt"
    assert await gateway.balance(ledger.held(WALLET)) == 0
    assert await gateway.balance(ledger.available(WALLET)) == Decimal("0.99958")


@pytest.mark.usefixtures("no_cancel_wait")
async def test_a_job_without_a_supervisor_is_marked(gateway: Gateway) -> None:
    job = await gateway.submit()
    assert not await is_cancel_requested(job)
    answer = await gateway.client.delete(job.url)
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")
    assert await is_cancel_requested(job)
    assert await events_of(gateway, job) == [Cancel(job.id, 0)]


@pytest.mark.usefixtures("no_cancel_wait")
async def test_a_job_is_marked_although_redis_does_not_answer(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor sees the mark when it renews its lease."""

    async def fail(*_: object, **__: object) -> None:
        raise ConnectionError

    job = await gateway.submit()
    monkeypatch.setattr(messaging, "publish_event", fail)
    assert (await gateway.client.delete(job.url)).status_code == 200
    assert await is_cancel_requested(job)


async def test_cancelling_an_ended_job_changes_nothing(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("a", "b")
    await job.complete()
    before, books = await job.poll(), await gateway.books()
    answer = await gateway.client.delete(job.url)
    assert (answer.status_code, answer.json()) == (200, before)
    assert await gateway.books() == books
    assert not await is_cancel_requested(job)
    assert await events_of(gateway, job) == []


@pytest.mark.usefixtures("no_cancel_wait")
async def test_cancelling_twice_has_no_further_effect(gateway: Gateway) -> None:
    job = await gateway.submit()
    answers = [await gateway.client.delete(job.url) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert await is_cancel_requested(job)


async def test_another_users_job_cannot_be_cancelled(gateway: Gateway) -> None:
    job = await gateway.submit()
    answer = await gateway.client.delete(job.url, headers=gateway.login(OTHER_WALLET))
    problem(answer, 404, "job_not_found")
    assert not await is_cancel_requested(job)
    assert await events_of(gateway, job) == []


async def hang_up_on_stream(client: httpx.AsyncClient, gateway: Gateway) -> Job:
    async with client.stream("POST", GENERATE, json=request_body(stream=True)) as answer:
        job = await gateway.new_job()
        await job.write("a", "b")
        received = ""
        async for text in answer.aiter_text():
            received += text
            if WRITTEN.search(received):
                break
    return job


async def hang_up_before_the_first_token(client: httpx.AsyncClient, gateway: Gateway) -> Job:
    async with client.stream("POST", GENERATE, json=request_body(stream=True)):
        return await gateway.new_job()


async def hang_up_on_json(client: httpx.AsyncClient, gateway: Gateway) -> Job:
    asking = asyncio.create_task(client.post(GENERATE, json=request_body()))
    job = await gateway.new_job()
    await job.write("a")
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    return job


@pytest.mark.parametrize(
    "hang_up", [hang_up_on_stream, hang_up_before_the_first_token, hang_up_on_json]
)
async def test_hanging_up_cancels(gateway: Gateway, hang_up: object) -> None:
    assert callable(hang_up)
    async with serve(gateway) as served:
        job = await hang_up(served.client, gateway)

        async def look() -> bool:
            return await is_cancel_requested(job) and await events_of(gateway, job) == [
                Cancel(job.id, (await job.row()).epoch)
            ]

        await eventually(look)


async def test_hanging_up_on_an_asynchronous_job_does_not_cancel_it(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("a", "b")
    async with serve(gateway) as served:
        async with served.client.stream("GET", job.url + "/events") as answer:
            assert (await anext(answer.aiter_lines())) == "id: 1"
        await served.idle()
        await gateway.services.finish_background()
    assert not await is_cancel_requested(job)
    await job.complete()
    assert (await job.poll())["text"] == "ab"


async def test_a_replica_that_stops_cancels_nothing(gateway: Gateway) -> None:
    """Its readers resume at another."""
    async with serve(gateway) as served:

        async def read() -> None:
            with suppress(httpx.RemoteProtocolError):  # cut off without a last chunk
                await served.client.post(GENERATE, json=request_body(stream=True))

        reading_on = asyncio.create_task(read())
        job = await gateway.new_job()

        async def look() -> bool:
            return await gateway.redis.exists(redis_keys.tokens(job.id)) == 1

        await job.write("a")
        await eventually(look)
        served.stop()
        await reading_on
        await served.idle()
    await gateway.services.finish_background()
    assert not await is_cancel_requested(job)


async def test_the_end_of_a_stream_is_no_hanging_up(gateway: Gateway) -> None:
    async with serve(gateway) as served:
        asking = asyncio.create_task(served.client.post(GENERATE, json=request_body(stream=True)))
        job = await gateway.new_job()
        await job.write("a")
        await job.complete()
        assert (await asking).status_code == 200
        await served.idle()
    await gateway.services.finish_background()
    assert not await is_cancel_requested(job)
    assert await events_of(gateway, job) == []


async def until_line(lines: AsyncIterator[str], line: str) -> None:
    async for each in lines:
        if each == line:
            return
    raise AssertionError(f"The stream ended without {line!r}.")


async def stopped(gateway: Gateway, job: Job) -> None:
    """Wait for the end of the hang-up's work."""

    async def look() -> bool:
        return await is_cancel_requested(job)

    await eventually(look)
    await gateway.services.finish_background()


@pytest.mark.parametrize("another_reads", [False, True])
async def test_what_a_stream_was_not_sent_is_billed_only_if_another_reads_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, another_reads: bool
) -> None:
    async with serve(gateway) as served:
        body = request_body(stream=True)
        async with served.client.stream("POST", GENERATE, json=body) as answer:
            job = await gateway.new_job()
            await job.write("a", "b")
            lines = answer.aiter_lines()
            await until_line(lines, "id: 2")
            # The gateway reads once more, and then not for as long as the test runs.
            monkeypatch.setattr(token_hub, "PAUSE_PER_JOB", 3600)
            await job.write("c")
            await until_line(lines, "id: 3")
            await job.write("d", "e")
            if another_reads:
                assert (await job.poll())["text"] == "abcde"
        await stopped(gateway, job)
    left = "abcde" if another_reads else "abc"
    await job.complete("cancelled")
    assert [event.data.get("token") for event in await job.events()] == [*left, None]
    assert (await job.poll())["text"] == left
    assert (await job.row()).token_count == len(left)


async def test_a_client_that_waits_pays_for_what_had_come(gateway: Gateway) -> None:
    async with serve(gateway) as served:
        asking = asyncio.create_task(served.client.post(GENERATE, json=request_body()))
        job = await gateway.new_job()
        await job.write("a", "b", "c")
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        await stopped(gateway, job)
    await job.complete("cancelled")
    tokens = (await job.row()).token_count
    assert tokens in range(1, 4), "how many the gateway had seen by then"
    assert (await job.poll())["text"] == "abc"[:tokens]


async def test_two_streams_of_one_job_keep_all_of_it(gateway: Gateway) -> None:
    """An idempotency key leads both to it; one hangs up."""
    async with serve(gateway) as served:
        body, headers = request_body(stream=True), {"Idempotency-Key": "one"}

        def streaming() -> AbstractAsyncContextManager[httpx.Response]:
            return served.client.stream("POST", GENERATE, json=body, headers=headers)

        async with streaming() as first:
            job = await gateway.new_job()
            async with streaming() as second:
                await job.write("a", "b", "c")
                lines = second.aiter_lines()
                await until_line(lines, "id: 3")
                await first.aclose()
                await stopped(gateway, job)
                await job.complete("cancelled")
                await until_line(lines, "id: 3-done")
    assert (await job.row()).token_count == 3


async def test_an_explicit_cancel_lets_no_token_come_after_it(gateway: Gateway) -> None:
    job = await gateway.submit()
    await job.write("a", "b")
    await cancellation.cancel(gateway.services, await job.row())
    with pytest.raises(AssertionError):
        await job.write("c")
    await job.complete("cancelled")
    assert (await job.poll())["text"] == "ab"
