"""Completions by OpenAI's own client; the tests play the nodes."""

from typing import Any

import openai
import pytest

from tests.conftest import MODEL_ID
from tests.integration.api.routes.openai.playing import answered, play_hello, prompt_of
from tests.support.gateway.api import Gateway, Job


async def test_a_text_is_continued_by_sixteen_tokens_at_most(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    longest: list[int] = []

    async def play(jobs: list[Job]) -> None:
        longest.append((await jobs[0].row()).max_tokens)
        await play_hello(jobs)

    answer = await answered(
        gateway, client.completions.create(model=MODEL_ID, prompt="The return value"), play
    )
    assert answer.choices[0].text == "Hello"
    assert longest == [16]


async def test_prompts_and_choices_are_one_request(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    prompts: list[list[int]] = []

    async def play(jobs: list[Job]) -> None:
        for number, job in enumerate(jobs):
            prompts.append((await prompt_of(gateway, job)).token_ids)
            await job.write(f"text {number}")
            await job.complete("length")

    answer = await answered(
        gateway,
        client.completions.create(model=MODEL_ID, prompt=[[5, 6], [7]], n=2),
        play,
        jobs=4,
    )
    assert [choice.text for choice in answer.choices] == [f"text {number}" for number in range(4)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert prompts == [[5, 6], [5, 6], [7], [7]]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 4)


async def test_texts_of_a_list_are_prompts_of_their_own(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    answer = await answered(
        gateway,
        client.completions.create(model=MODEL_ID, prompt=["one", "two"]),
        play_hello,
        jobs=2,
    )
    assert [choice.text for choice in answer.choices] == ["Hello", "Hello"]


async def test_log_probabilities_stand_where_their_tokens_begin(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    async def ask() -> list[Any]:
        stream = await client.completions.create(
            model=MODEL_ID, prompt="x", logprobs=0, stream=True
        )
        return [chunk async for chunk in stream]

    chunks = await answered(gateway, ask(), play_hello)
    offsets = [
        chunk.choices[0].logprobs.text_offset for chunk in chunks if chunk.choices[0].logprobs
    ]
    assert offsets == [[0], [3], [5]]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": ""}, "prompt_empty"),
        ({"prompt": []}, "prompt_missing"),
        ({"prompt": [["x"]]}, "prompt_wrong_type"),
        ({"prompt": [10**9]}, "prompt_token_unknown"),
        ({"prompt": [-1]}, "prompt_token_unknown"),
        ({"prompt": ["x"] * 17}, "prompt_too_many"),
        ({"echo": True}, "echo_unknown"),
        ({"best_of": 2}, "best_of_unknown"),
        ({"suffix": "end"}, "suffix_unknown"),
        ({"logprobs": 6}, "logprobs_out_of_range"),
        ({"n": 17}, "n_out_of_range"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    client: openai.AsyncOpenAI, changes: dict[str, Any], code: str
) -> None:
    body: dict[str, Any] = {"model": MODEL_ID, "prompt": "x"} | changes
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/completions", body=body, cast_to=object)
    assert refused.value.code == code


async def test_more_than_the_wallet_has_is_refused_as_a_whole(
    gateway: Gateway, client: openai.AsyncOpenAI
) -> None:
    before = await gateway.books()
    with pytest.raises(openai.APIStatusError) as refused:
        await client.completions.create(model=MODEL_ID, prompt="x", max_tokens=700, n=16)
    assert refused.value.status_code == 402
    assert refused.value.code == "insufficient_quota"
    assert await gateway.books() == before
