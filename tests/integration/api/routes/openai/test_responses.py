"""Responses by OpenAI's own client; the tests play the nodes."""

import asyncio
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseTextDeltaEvent

from tests.conftest import MODEL_ID
from tests.integration.api.routes.openai.playing import (
    answered,
    new_jobs,
    play_hello,
    prompt_of,
)
from tests.support.gateway.api import OTHER_WALLET, Gateway, Job

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string"}},
        "required": ["town"],
        "additionalProperties": False,
    },
    "strict": True,
}


async def test_a_response_has_the_text_and_what_it_took(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    response = await answered(
        gateway,
        client.responses.create(model=MODEL_ID, input="Hello", instructions="Be brief."),
        play_hello,
    )
    assert isinstance(response, Response)
    assert (response.status, response.output_text) == ("completed", "Hello")
    assert response.usage is not None
    assert response.usage.output_tokens == 3
    assert response.instructions == "Be brief."
    assert response.error is None


async def test_an_input_of_items_is_a_chat(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    seen: list[str] = []

    async def play(jobs: list[Job]) -> None:
        tokenizer = gateway.services.catalog.get(MODEL_ID).tokenizer
        token_ids = (await prompt_of(gateway, jobs[0])).token_ids
        seen.append(tokenizer.decode(token_ids, skip_special_tokens=False))
        await play_hello(jobs)

    await answered(
        gateway,
        client.responses.create(
            model=MODEL_ID,
            instructions="Be brief.",
            input=[
                {"role": "user", "content": [{"type": "input_text", "text": "Rain?"}]},
                {
                    "type": "function_call",
                    "call_id": "call_1",
                    "name": "weather",
                    "arguments": '{"town": "Ulm"}',
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "Yes"},
            ],
        ),
        play,
    )
    assert seen == [
        "<|endoftext|>[system] Be brief.\n[user] Rain?\n[assistant] "
        '<tool_call>\n{"name": "weather", "arguments": {"town": "Ulm"}}\n</tool_call>\n'
        "[tool] Yes\n[assistant] "
    ]


async def test_a_stream_has_the_events_that_the_client_knows(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    async def ask() -> tuple[list[Any], Response]:
        async with client.responses.stream(model=MODEL_ID, input="Hello") as stream:
            events = [event async for event in stream]
            return events, await stream.get_final_response()

    events, response = await answered(gateway, ask(), play_hello)
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    assert response.output_text == "Hello"


async def test_an_answer_that_is_too_long_is_incomplete(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    async def play(jobs: list[Job]) -> None:
        await jobs[0].write("Hel")
        await jobs[0].complete("length")

    response = await answered(
        gateway, client.responses.create(model=MODEL_ID, input="x", max_output_tokens=1), play
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


async def test_a_call_of_a_tool_is_an_item(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    async def play(jobs: list[Job]) -> None:
        assert "weather" in (await prompt_of(gateway, jobs[0])).sampling["grammar"]
        await jobs[0].write(
            "<tool_call>\n", '{"name": "weather", "argu', 'ments": {"town": "Ulm"}}'
        )
        await jobs[0].write("\n</tool_call>")
        await jobs[0].complete("stop")

    response = await answered(
        gateway,
        client.responses.create(
            model=MODEL_ID, input="Rain?", tools=[WEATHER], tool_choice="required"
        ),
        play,
    )
    [item] = response.output
    assert item.type == "function_call"
    assert (item.name, item.arguments) == ("weather", '{"town": "Ulm"}')
    assert item.call_id


async def test_a_background_response_is_resumed_at_the_event(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    response = await client.responses.create(model=MODEL_ID, input="Hello", background=True)
    assert response.status == "queued"
    [job] = await new_jobs(gateway, set(), 1)
    await job.write("Hel")
    first: list[Any] = []
    stream = await client.responses.retrieve(response.id, stream=True)
    async for event in stream:
        first.append(event)
        if isinstance(event, ResponseTextDeltaEvent):
            break
    await stream.close()
    assert not (await job.row()).cancel_requested
    await job.write("lo")
    await job.complete("stop")
    rest = await client.responses.retrieve(
        response.id, stream=True, starting_after=first[-1].sequence_number
    )
    events = first + [event async for event in rest]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)]
    assert deltas == ["Hel", "lo"]
    assert (await client.responses.retrieve(response.id)).output_text == "Hello"


async def test_a_background_response_can_be_cancelled(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    response = await client.responses.create(model=MODEL_ID, input="Hello", background=True)
    [job] = await new_jobs(gateway, set(), 1)
    await job.write("Hel")
    cancelling = asyncio.create_task(client.responses.cancel(response.id))
    await asyncio.sleep(0.1)
    await job.complete("cancelled")
    cancelled = await cancelling
    assert (cancelled.status, cancelled.output_text) == ("cancelled", "Hel")


async def test_a_failure_is_a_response_that_failed(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    response = await client.responses.create(model=MODEL_ID, input="Hello", background=True)
    [job] = await new_jobs(gateway, set(), 1)
    await job.start()
    await job.fail("stalled")
    failed = await client.responses.retrieve(response.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "stopped answering" in failed.error.message


async def test_nobody_else_finds_it_and_nothing_is_stored_without_background(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    response = await client.responses.create(model=MODEL_ID, input="Hello", background=True)
    stranger = gateway.login(OTHER_WALLET)["Authorization"].removeprefix("Bearer ")
    with pytest.raises(openai.NotFoundError):
        await client.with_options(api_key=stranger).responses.retrieve(response.id)
    known = await gateway.request_ids()

    async def ask() -> Response:
        return await client.responses.create(model=MODEL_ID, input="Hello", store=True)

    task = asyncio.create_task(ask())
    await play_hello(await new_jobs(gateway, known, 1))
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve((await task).id)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id_unserved"),
        ({"conversation": "conv_1"}, "conversation_unserved"),
        ({"tools": [{"type": "web_search"}]}, "tools_unknown"),
        ({"truncation": "auto"}, "truncation_unknown"),
        ({"input": []}, "input_too_few"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input_unknown"),
        ({"reasoning": {"effort": "high"}}, "reasoning_unknown"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    client: openai.AsyncOpenAI, changes: dict[str, Any], code: str
) -> None:
    body: dict[str, Any] = {"model": MODEL_ID, "input": "x"} | changes
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/responses", body=body, cast_to=Response)
    assert refused.value.code == code
