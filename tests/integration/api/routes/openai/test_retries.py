"""OpenAI's client repeats a request by itself: one charge, however often."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import openai
import pytest

from api.routes.openai import attempts
from market import ledger
from mesh.redis_keys import attempt
from tests.conftest import MODEL_ID
from tests.integration.api.routes.openai.playing import new_jobs, play_hello
from tests.support.gateway.api import WALLET, Gateway, eventually
from tests.support.gateway.api_served import Served
from tests.support.network.gate import Gate, gate


@pytest.fixture
async def line(served: Served) -> AsyncIterator[Gate]:
    """The network between client and gateway."""
    with gate(served.port) as made:
        yield made
        await asyncio.to_thread(made.close)


@pytest.fixture
async def client(gateway: Gateway, line: Gate) -> AsyncIterator[openai.AsyncOpenAI]:
    key = gateway.login()["Authorization"].removeprefix("Bearer ")
    async with openai.AsyncOpenAI(base_url=f"{line.url}/v1", api_key=key, timeout=10) as made:
        yield made


def ask(client: openai.AsyncOpenAI) -> asyncio.Task[openai.types.Completion]:
    return asyncio.create_task(client.completions.create(model=MODEL_ID, prompt="x", seed=1))


async def test_an_answer_that_was_cut_is_charged_once(
    gateway: Gateway, line: Gate, client: openai.AsyncOpenAI
) -> None:
    asking = ask(client)
    [job] = await new_jobs(gateway, set(), 1, asking)
    await asyncio.to_thread(line.sever)

    async def retried() -> bool:
        return bool(await gateway.redis.get(attempt(job.id)))

    await eventually(retried)
    await play_hello([job])
    answer = await asking
    assert answer.choices[0].text == "Hello"
    assert await gateway.request_ids() == {job.id}
    row = await job.row()
    assert not row.cancel_requested
    assert row.total_cost_far is not None
    assert await gateway.balance(ledger.available(WALLET)) == Decimal(1) - row.total_cost_far


async def test_a_retry_of_an_answer_that_has_ended_gets_it(
    gateway: Gateway, line: Gate, client: openai.AsyncOpenAI
) -> None:
    asking = ask(client)
    [job] = await new_jobs(gateway, set(), 1, asking)
    await asyncio.to_thread(line.sever)
    await play_hello([job])
    assert (await asking).choices[0].text == "Hello"
    assert await gateway.request_ids() == {job.id}


async def test_a_client_that_does_not_come_back_cancels(
    gateway: Gateway, line: Gate, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "GRACE_SECONDS", 0.2)
    asking = ask(client.with_options(max_retries=0))
    [job] = await new_jobs(gateway, set(), 1, asking)
    await asyncio.to_thread(line.sever)
    with pytest.raises(openai.APIConnectionError):
        await asking

    async def cancelled() -> bool:
        return (await job.row()).cancel_requested

    await eventually(cancelled)


async def test_a_retry_of_what_failed_is_another_job(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    asking = ask(client)
    [job] = await new_jobs(gateway, set(), 1, asking)
    await job.start()
    await job.fail("stalled")
    [second] = await new_jobs(gateway, {job.id}, 1, asking)
    await play_hello([second])
    assert (await asking).choices[0].text == "Hello"
    assert await gateway.balance(ledger.held(WALLET)) == 0


async def test_equal_requests_that_are_no_retries_are_jobs_of_their_own(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    asking = [ask(client), ask(client)]
    jobs = await new_jobs(gateway, set(), 2)
    await play_hello(jobs)
    answers = await asyncio.gather(*asking)
    assert answers[0].id != answers[1].id


async def test_an_idempotency_key_gives_the_same_answer(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    headers = {"Idempotency-Key": "mine"}
    asking = [
        asyncio.create_task(
            client.completions.create(
                model=MODEL_ID, prompt=["x", "y"], seed=1, extra_headers=headers
            )
        )
        for _ in range(2)
    ]
    jobs = await new_jobs(gateway, set(), 2)
    await play_hello(jobs)
    answers = await asyncio.gather(*asking)
    assert answers[0].id == answers[1].id
    assert len(await gateway.request_ids()) == 2
    with pytest.raises(openai.ConflictError):
        await client.with_options(max_retries=0).completions.create(
            model=MODEL_ID, prompt="other", extra_headers=headers
        )


async def test_the_end_of_a_first_attempt_leaves_the_job_to_the_next(
    gateway: Gateway, served: Served
) -> None:
    """Its answer had begun, as the gateway saw it, and was lost on its way."""
    body = {"model": MODEL_ID, "prompt": "x", "seed": 1, "stream": True}
    path, count = "/v1/completions", "X-Stainless-Retry-Count"
    async with served.client.stream("POST", path, json=body, headers={count: "0"}) as first:
        [job] = await new_jobs(gateway, set(), 1)
        await job.write("Hel")
        lines = first.aiter_lines()
        assert "Hel" in await anext(lines)
        second = asyncio.create_task(served.client.post(path, json=body, headers={count: "1"}))

        async def joined() -> bool:
            return bool(await gateway.redis.get(attempt(job.id)))

        await eventually(joined)
    await gateway.services.finish_background()
    await job.write("lo", "")
    await job.complete("stop")
    answer = await second
    assert "[DONE]" in answer.text
    assert not (await job.row()).cancel_requested
    assert await gateway.request_ids() == {job.id}
