"""The gateway with a model that chats, and OpenAI's own client for it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import openai
import pytest
from redis.asyncio import Redis

from market.settings import Settings
from tests.conftest import MODEL_ID
from tests.support.gateway.api import Gateway, all_nodes, open_gateway
from tests.support.gateway.api_served import Served, serve
from tests.support.gateway.chat_model import make_chat_model


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture
async def gateway(
    make_settings: Callable[..., Settings], redis: Redis, chat_model: Path
) -> AsyncIterator[Gateway]:
    """The gateway, with a node for each layer, and 1 FAR in the wallet that is logged in."""
    models = [
        {
            "id": MODEL_ID,
            "path": str(chat_model),
            "payment_per_token": "0.0001",
        }
    ]
    async with open_gateway(make_settings(models=models)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


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
