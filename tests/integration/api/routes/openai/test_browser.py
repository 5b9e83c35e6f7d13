"""A page of another origin asks as OpenAI's client does in a browser: by a preflight first."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from market.settings import Settings
from tests.conftest import MODEL_ID
from tests.integration.api.routes.openai.playing import new_jobs, play_hello
from tests.support.browser import blank_page, needs_chromium, open_browser
from tests.support.gateway.api import PATIENCE, Gateway, all_nodes, open_gateway
from tests.support.gateway.api_served import Served

ASK = """
async ([api, key, model]) => {
  const answer = await fetch(`${api}/v1/chat/completions`, {
    method: "POST",
    headers: {
      Authorization: `Bearer ${key}`, "Content-Type": "application/json",
      "OpenAI-Organization": "org", "Idempotency-Key": "one",
      "X-Stainless-Retry-Count": "0", "X-Stainless-Lang": "js", "X-Stainless-Timeout": "60",
    },
    body: JSON.stringify({
      model, stream: true, messages: [{ role: "user", content: "Hello" }],
    }),
  });
  return [answer.status, answer.headers.get("X-Request-Id"), await answer.text()];
}
"""


@pytest.fixture
def page_url() -> Iterator[str]:
    with blank_page() as url:
        yield url


@pytest.fixture
async def gateway(
    make_settings: Callable[..., Settings], redis: Redis, page_url: str, chat_model: Path
) -> AsyncIterator[Gateway]:
    models = [{"id": MODEL_ID, "path": str(chat_model), "payment_per_token": "0.0001"}]
    async with open_gateway(make_settings(models=models, cors_origins=page_url)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


@needs_chromium
@pytest.mark.slow  # a browser starts
async def test_a_page_is_streamed_an_answer(
    gateway: Gateway, served: Served, page_url: str
) -> None:
    key = gateway.login()["Authorization"].removeprefix("Bearer ")
    async with open_browser() as browser:
        page = await browser.new_page()
        await page.goto(page_url)
        api = f"http://127.0.0.1:{served.port}"
        asking = asyncio.create_task(page.evaluate(ASK, [api, key, MODEL_ID]))
        await play_hello(await new_jobs(gateway, set(), 1, asking))
        status, name, text = await asyncio.wait_for(asking, 3 * PATIENCE)
    assert status == 200
    assert name
    assert text.rstrip().endswith("data: [DONE]")
