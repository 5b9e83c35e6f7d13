"""OpenAI's own clients, as their makers publish them, against the running mesh."""

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from stack.development_stack import DevelopmentStack
from tests.conftest import MODEL_ID
from tests.e2e.conftest import Reference, User, balance, query
from tests.support.network.gate import gate

PACKAGES = Path(__file__).parents[2] / "contracts" / "node_modules"
SCRIPT = Path(__file__).parents[1] / "support" / "gateway" / "openai_client.mjs"

needs_package = pytest.mark.skipif(
    not (PACKAGES / "openai").exists() or shutil.which("node") is None,
    reason="The npm package openai is not there: run `npm ci` in contracts/.",
)

QUESTION = "The for statement"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
PROMPT = f"[user] {QUESTION}\n[assistant] "
"""What the model's chat template makes of them."""


class Weather(BaseModel):
    """A form that an answer has to have."""

    town: Literal["Ulm", "Bonn"]
    unit: Literal["C", "F"]


def key_of(user: User) -> str:
    """A new API key of the user's."""
    made = user.http.post("/api/keys", json={"name": "an app"}).raise_for_status()
    key: str = made.json()["key"]
    return key


@pytest.fixture
def client(stack: DevelopmentStack, user: User) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.plan.api_url}/v1", api_key=key_of(user)) as made:
        yield made


def test_a_chat_is_what_transformers_gives(client: openai.OpenAI, reference: Reference) -> None:
    answer = client.chat.completions.create(
        model=MODEL_ID, messages=MESSAGES, temperature=0, max_tokens=48
    )
    assert answer.choices[0].message.content == reference.text(PROMPT, 48)
    assert answer.system_fingerprint in ("fp_none.batch_invariant", "fp_none.batch_variant")
    extra = answer.model_extra or {}
    [job] = extra["jobs"]
    assert [len(node["layers"]) for node in job["nodes_used"]] == [2, 2, 2]


def test_a_stream_is_the_same_and_ends_with_usage(
    client: openai.OpenAI, reference: Reference
) -> None:
    text, usage = "", None
    for chunk in client.chat.completions.create(
        model=MODEL_ID,
        messages=MESSAGES,
        temperature=0,
        max_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
    ):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    assert text == reference.text(PROMPT, 48)
    assert usage is not None
    assert usage.prompt_tokens == len(reference.tokenizer.encode(PROMPT).ids)


def test_a_response_and_a_completion_are_the_same_text(
    client: openai.OpenAI, reference: Reference
) -> None:
    response = client.responses.create(
        model=MODEL_ID, input=QUESTION, temperature=0, max_output_tokens=48
    )
    completion = client.completions.create(
        model=MODEL_ID, prompt=PROMPT, temperature=0, max_tokens=48
    )
    assert response.output_text == completion.choices[0].text == reference.text(PROMPT, 48)


def test_equal_seeds_give_equal_choices_and_others_differ(client: openai.OpenAI) -> None:
    first, second = (
        client.chat.completions.create(
            model=MODEL_ID, messages=MESSAGES, n=2, seed=5, temperature=1, max_tokens=32
        )
        for _ in range(2)
    )
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert texts[0] != texts[1]


def test_log_probabilities_are_those_of_the_model(
    client: openai.OpenAI, reference: Reference
) -> None:
    answer = client.completions.create(
        model=MODEL_ID, prompt=QUESTION, temperature=0, max_tokens=4, logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    expected = reference.logprobs(QUESTION, 4)
    assert logprobs.token_logprobs == pytest.approx(expected, abs=1e-3)
    assert all(
        math.isclose(max(top.values()), own, abs_tol=1e-6)
        for top, own in zip(logprobs.top_logprobs, logprobs.token_logprobs, strict=True)
    )


def test_the_clients_own_helper_parses_a_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL_ID, messages=MESSAGES, response_format=Weather, temperature=0, max_tokens=64
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)
    response = client.responses.parse(
        model=MODEL_ID, input=QUESTION, text_format=Weather, temperature=0, max_output_tokens=64
    )
    assert isinstance(response.output_parsed, Weather)


def test_a_tool_is_called_and_its_result_is_answered(client: openai.OpenAI) -> None:
    tool: Any = openai.pydantic_function_tool(Weather, name="weather")
    messages = list(MESSAGES)
    asked = client.chat.completions.create(
        model=MODEL_ID,
        messages=messages,
        tools=[tool],
        tool_choice="required",
        temperature=0,
        max_tokens=96,
    )
    choice = asked.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    [call] = choice.message.tool_calls
    assert call.type == "function"
    found = Weather.model_validate_json(call.function.arguments)
    messages += [
        choice.message.model_dump(exclude_none=True),  # type: ignore[list-item]
        {"role": "tool", "tool_call_id": call.id, "content": f"20 {found.unit}"},
    ]
    answered = client.chat.completions.create(
        model=MODEL_ID, messages=messages, tools=[tool], tool_choice="none", max_tokens=8
    )
    assert answered.choices[0].message.tool_calls is None
    assert answered.choices[0].message.content


def test_a_proxy_that_cuts_the_first_answer_costs_nothing(
    stack: DevelopmentStack, user: User
) -> None:
    """The client tries again by itself, and pays once."""
    wallet = user.account.address.lower()
    with gate(stack.plan.api_port) as line:
        line.forgets_after = b"/v1/completions"
        with openai.OpenAI(base_url=f"{line.url}/v1", api_key=key_of(user), timeout=5) as client:
            answer = client.completions.create(
                model=MODEL_ID, prompt=QUESTION, seed=1, max_tokens=16
            )
    assert answer.choices[0].text
    jobs = query(stack, f"SELECT request_id FROM inference_sessions WHERE user_wallet = '{wallet}'")
    assert len(jobs) == 1
    extra = answer.usage.model_extra if answer.usage else None
    cost = Decimal((extra or {})["cost_far_exact"])
    assert balance(stack, user.account, "available") == Decimal(1) - cost


def test_a_time_out_is_the_clients_own_error(stack: DevelopmentStack, user: User) -> None:
    with (
        openai.OpenAI(
            base_url=f"{stack.plan.api_url}/v1", api_key=key_of(user), timeout=0.01, max_retries=0
        ) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.completions.create(model=MODEL_ID, prompt=QUESTION, max_tokens=500)


@needs_package
def test_the_npm_package_works_unchanged(
    stack: DevelopmentStack, user: User, reference: Reference, tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    script = tmp_path / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    done = subprocess.run(
        ["node", str(script), f"{stack.plan.api_url}/v1", key_of(user), MODEL_ID],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    text = reference.text(PROMPT, 24)
    assert seen["chat"][0] == seen["streamed"] == seen["response"][1] == text
    assert seen["usage"]["completion_tokens"] == seen["streamedUsage"]["completion_tokens"]
    assert seen["choices"] == [0, 1]
    assert set(seen["logprobs"]) == {2}
    assert seen["completion"] == reference.text("The return", 16)
    assert seen["called"] in ("C", "F")
    assert seen["messages"][:3] == ["user", "assistant", "tool"]
    assert seen["wrongKey"] == ["AuthenticationError", 401, "invalid_api_key", True]
    assert seen["wrongModel"] == ["NotFoundError", 404, "model_not_found", True]
    assert seen["wrongField"] == ["BadRequestError", 400, "temperature_out_of_range", True]
    assert seen["models"] == [MODEL_ID]
