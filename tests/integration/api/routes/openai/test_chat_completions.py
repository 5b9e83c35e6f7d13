"""Chat completions by OpenAI's own client; the tests play the nodes."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from market.prompt_vault import PromptText
from tests.conftest import MODEL_ID
from tests.integration.api.routes.openai.playing import answered, play_hello, prompt_of
from tests.support.gateway.api import Gateway, Job

HELLO: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Hello,"}, {"type": "text", "text": "you"}],
    },
]


async def test_an_answer_is_what_the_client_expects(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    answer = await answered(
        gateway,
        client.chat.completions.create(model=MODEL_ID, messages=HELLO, max_tokens=8),
        play_hello,
    )
    assert isinstance(answer, ChatCompletion)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens == 0
    extra: dict[str, Any] = answer.usage.model_extra or {}
    exact = 3 * 10 + answer.usage.prompt_tokens  # in hundred-thousandths
    assert extra["cost_far_exact"] == f"{exact / 100_000:.5f}".rstrip("0")


async def test_the_prompt_is_what_the_template_makes(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    seen: list[PromptText] = []

    async def play(jobs: list[Job]) -> None:
        seen.append(await prompt_of(gateway, jobs[0]))
        await play_hello(jobs)

    await answered(gateway, client.chat.completions.create(model=MODEL_ID, messages=HELLO), play)
    tokenizer = gateway.services.catalog.get(MODEL_ID).tokenizer
    text = tokenizer.decode(seen[0].token_ids, skip_special_tokens=False)
    assert text == "<|endoftext|>[system] Be brief.\n[user] Hello,\nyou\n[assistant] "


async def test_streamed_chunks_end_with_usage(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    async def ask() -> list[Any]:
        stream = await client.chat.completions.create(
            model=MODEL_ID,
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        )
        return [chunk async for chunk in stream]

    chunks = await answered(gateway, ask(), play_hello)
    contents = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert contents == ["", "Hel", "lo", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


async def test_two_choices_are_two_jobs_of_one_request(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    async def play(jobs: list[Job]) -> None:
        rows = [await job.row() for job in jobs]
        assert rows[1].seed == rows[0].seed + 1 == 8
        for job, text in zip(jobs, ("one", "two"), strict=True):
            await job.write(text)
            await job.complete("length")

    answer = await answered(
        gateway,
        client.chat.completions.create(model=MODEL_ID, messages=HELLO, n=2, seed=7),
        play,
        jobs=2,
    )
    assert [choice.message.content for choice in answer.choices] == ["one", "two"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


async def test_parameters_reach_the_edge(gateway: Gateway, client: openai.AsyncOpenAI) -> None:
    async def play(jobs: list[Job]) -> None:
        row, prompt = await jobs[0].row(), await prompt_of(gateway, jobs[0])
        assert (row.temperature, row.top_p, row.max_tokens) == (0.25, 0.5, 5)
        assert prompt.stop == ["END"]
        assert prompt.sampling == {
            "top_k": 3,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "logit_bias": {5: -100.0},
            "logprobs": 2,
        }
        await play_hello(jobs)

    answer = await answered(
        gateway,
        client.chat.completions.create(
            model=MODEL_ID,
            messages=HELLO,
            max_completion_tokens=5,
            temperature=0.25,
            top_p=0.5,
            stop="END",
            frequency_penalty=0.5,
            presence_penalty=-0.5,
            logit_bias={"5": -100},
            logprobs=True,
            top_logprobs=2,
            user="somebody",
            store=True,
            extra_body={"top_k": 3, "min_p": None},
        ),
        play,
    )
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content or []) == 3


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"messages": []}, "messages", "messages_too_few"),
        ({"temperature": 3}, "temperature", "temperature_out_of_range"),
        ({"functions": [{"name": "f"}]}, "functions", "functions_unserved"),
        ({"audio": {"voice": "x"}}, "audio", "audio_unserved"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "reasoning_effort_unknown"),
        ({"no_such": 1}, "no_such", "unknown_field"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "logit_bias_malformed"),
        ({"logit_bias": {"999999999": 1}}, "logit_bias", "logit_bias_token_unknown"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs_unexpected"),
        ({"service_tier": "flex"}, "service_tier", "service_tier_unknown"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "messages_unserved",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "content_missing"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    client: openai.AsyncOpenAI, changes: dict[str, Any], param: str, code: str
) -> None:
    body: dict[str, Any] = {"model": MODEL_ID, "messages": HELLO} | changes
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/chat/completions", body=body, cast_to=ChatCompletion)
    assert refused.value.code == code
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
