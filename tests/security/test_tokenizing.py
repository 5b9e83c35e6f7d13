"""Strangers send the longest prompts, which take seconds to tokenize, so that all turns to submit
are taken by requests that are refused in the end."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from market.jobs.request import TextPrompt
from market.jobs.submission import prompt_tokens
from market.jobs.submission.submissions import MAX_AT_ONCE, MAX_TOKENIZED
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    OTHER_WALLET,
    WALLET,
    Gateway,
    eventually,
    problem,
    request_body,
)

LONGEST = "\U0001f600" * 195_000

POOR = "0x" + "ee" * 20


class SlowTokenizer:
    """Encodes no prompt that begins with "slow" until it may."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.most = 0
        self.may = threading.Event()
        self._encode = prompt_tokens._encode

    def encode(self, model: Any, prompt: TextPrompt) -> list[int]:
        self.running.append(prompt.text)
        self.most = max(self.most, len(self.running))
        if prompt.text.startswith("slow"):
            assert self.may.wait(30)
        self.running.remove(prompt.text)
        return self._encode(model, prompt)

    async def is_running(self) -> bool:
        return bool(self.running)


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowTokenizer]:
    slow = SlowTokenizer()
    monkeypatch.setattr(prompt_tokens, "_encode", slow.encode)
    yield slow
    slow.may.set()


async def submit(gateway: Gateway, wallet: str = WALLET, **changes: object) -> httpx.Response:
    return await gateway.client.post(
        GENERATE, json=request_body(**changes), headers=ASYNC | gateway.login(wallet)
    )


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[int]:
        raise AssertionError("tokenized")

    monkeypatch.setattr(prompt_tokens, "_encode", fail)


@pytest.mark.usefixtures("never")
async def test_what_cannot_fit_is_refused_without_tokenizing_it(gateway: Gateway) -> None:
    model = gateway.services.catalog.get(MODEL_ID)
    assert model.token_bytes is not None
    least = -(-4 * len(LONGEST) // model.token_bytes)
    refused = problem(await submit(gateway, prompt=LONGEST), 422, "context_exceeded")
    assert f"At least {least} tokens" in refused["detail"]


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("prompt", ["a", "a" * 10_000])
async def test_whoever_has_no_money_is_refused_without_tokenizing(
    gateway: Gateway, prompt: str
) -> None:
    problem(await submit(gateway, POOR, prompt=prompt), 402, "insufficient_balance")


async def test_a_wallets_long_prompts_let_others_submit(
    gateway: Gateway, tokenizer: SlowTokenizer
) -> None:
    await gateway.deposit(wallet=OTHER_WALLET)
    flood = [
        asyncio.create_task(submit(gateway, prompt=f"slow {number}"))
        for number in range(2 * MAX_AT_ONCE)
    ]
    await eventually(tokenizer.is_running)
    assert (await submit(gateway, OTHER_WALLET)).status_code == 202
    assert not any(task.done() for task in flood)
    tokenizer.may.set()
    assert {answer.status_code for answer in await asyncio.gather(*flood)} == {202}
    assert tokenizer.most <= 2, "one of each wallet"


async def test_of_many_wallets_few_prompts_are_tokenized_at_once(
    gateway: Gateway, tokenizer: SlowTokenizer
) -> None:
    wallets = [f"0x{number:040x}" for number in range(1, 9)]
    for wallet in wallets:
        await gateway.deposit(wallet=wallet)
    flood = [asyncio.create_task(submit(gateway, wallet, prompt="slow")) for wallet in wallets]

    async def are_all_running() -> bool:
        return len(tokenizer.running) == MAX_TOKENIZED

    await eventually(are_all_running)
    await asyncio.sleep(0.1)
    tokenizer.may.set()
    await asyncio.gather(*flood)
    assert tokenizer.most == MAX_TOKENIZED


async def test_hanging_up_gives_no_turn_back_before_its_work_ends(
    gateway: Gateway, tokenizer: SlowTokenizer
) -> None:
    hung_up = asyncio.create_task(submit(gateway, prompt="slow"))
    await eventually(tokenizer.is_running)
    hung_up.cancel()
    following = asyncio.create_task(submit(gateway, prompt="following"))
    await asyncio.sleep(0.1)
    assert tokenizer.running == ["slow"]
    tokenizer.may.set()
    assert (await following).status_code == 202
    await asyncio.gather(hung_up, return_exceptions=True)
