"""Errors as OpenAI's own client raises them."""

import openai
import pytest

from tests.conftest import MODEL_ID
from tests.integration.api.routes.openai.playing import answered, new_jobs, play_hello
from tests.support.gateway.api import Gateway, Job, eventually, problem


async def test_no_key_is_an_authentication_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        await client.with_options(api_key="sk-wrong").completions.create(model=MODEL_ID, prompt="x")
    assert refused.value.code == "invalid_api_key"
    assert refused.value.request_id


async def test_an_error_is_a_problem_document_as_well(gateway: Gateway) -> None:
    answer = await gateway.client.post("/v1/completions", json={"model": "none", "prompt": "x"})
    document = problem(answer, 404, "model_not_found")
    assert document["error"] == {
        "message": document["detail"],
        "type": "not_found_error",
        "param": None,
        "code": "model_not_found",
    }


async def test_a_client_waits_as_long_as_a_rate_limit_says(
    gateway: Gateway, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.services.settings.limits, "generations_per_wallet", "1/second")

    async def ask_twice() -> list[str]:
        asked = client.completions.create
        answers = [await asked(model=MODEL_ID, prompt=prompt) for prompt in ("x", "y")]
        return [answer.choices[0].text for answer in answers]

    async def play(jobs: list[Job]) -> None:
        await play_hello(jobs)
        await play_hello(await new_jobs(gateway, {jobs[0].id}, 1))

    assert await answered(gateway, ask_twice(), play) == ["Hello", "Hello"]


async def test_each_answer_of_a_request_counts(
    gateway: Gateway, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.services.settings.limits, "generations_per_wallet", "3/hour")
    with pytest.raises(openai.RateLimitError):
        await client.with_options(max_retries=0).completions.create(
            model=MODEL_ID, prompt=["x", "y"], n=2
        )
    assert not await gateway.request_ids()


async def test_a_rate_limit_is_an_error_of_its_own(
    gateway: Gateway, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.services.settings.limits, "generations_per_wallet", "1/hour")
    await answered(gateway, client.completions.create(model=MODEL_ID, prompt="x"), play_hello)
    with pytest.raises(openai.RateLimitError) as refused:
        await client.with_options(max_retries=0).completions.create(model=MODEL_ID, prompt="x")
    assert refused.value.code == "rate_limit_exceeded"
    assert int(refused.value.response.headers["retry-after"]) > 0


async def test_a_failure_in_a_stream_is_an_error_before_its_end(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    async def ask() -> str:
        text = ""
        stream = await client.completions.create(model=MODEL_ID, prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="Every route that was tried stopped"):
            async for chunk in stream:
                text += chunk.choices[0].text
        return text

    async def play(jobs: list[Job]) -> None:
        await jobs[0].write("so far")
        await jobs[0].fail("stalled")

    assert await answered(gateway, ask(), play) == "so far"


async def test_a_failure_is_an_internal_server_error(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    async def play(jobs: list[Job]) -> None:
        await jobs[0].start()
        await jobs[0].fail("stalled")

    with pytest.raises(openai.InternalServerError) as failed:
        await answered(
            gateway,
            client.with_options(max_retries=0).completions.create(model=MODEL_ID, prompt="x"),
            play,
        )
    assert failed.value.status_code == 502
    assert failed.value.type == "server_error"


async def test_a_raw_response_has_the_headers(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    raw = await answered(
        gateway,
        client.completions.with_raw_response.create(model=MODEL_ID, prompt="x"),
        play_hello,
    )
    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].text == "Hello"


async def test_a_chat_with_a_model_without_a_template_says_so(
    gateway: Gateway, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gateway.services.catalog.get(MODEL_ID)
    monkeypatch.setitem(vars(model), "chat_template", None)
    with pytest.raises(openai.BadRequestError, match=r"Use /v1/completions\.") as refused:
        await client.chat.completions.create(
            model=MODEL_ID, messages=[{"role": "user", "content": "x"}]
        )
    assert refused.value.code == "chat_unsupported"


async def test_a_stream_whose_client_hangs_up_is_cancelled(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    stream = await client.completions.create(model=MODEL_ID, prompt="x", stream=True)
    [job] = await new_jobs(gateway, set(), 1)
    await job.write("one")
    async for chunk in stream:
        assert chunk.choices[0].text == "one"
        break
    await stream.close()

    async def cancelled() -> bool:
        return (await job.row()).cancel_requested

    assert await eventually(cancelled)
