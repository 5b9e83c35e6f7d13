"""The gateway with a model that chats, and OpenAI's own client for it."""

from collections.abc import AsyncIterator

import openai
import pytest

from tests.support.gateway.api import Gateway
from tests.support.gateway.api_served import Served, serve


@pytest.fixture
def gateway(chat_gateway: Gateway) -> Gateway:
    return chat_gateway


@pytest.fixture
async def served(gateway: Gateway) -> AsyncIterator[Served]:
    """The gateway behind a real server."""
    async with serve(gateway) as opened:
        yield opened


@pytest.fixture
async def client(gateway: Gateway, served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client, as it is but for its URL and key."""
    key = gateway.login()["Authorization"].removeprefix("Bearer ")
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{served.port}/v1", api_key=key, timeout=10
    ) as made:
        yield made
