"""What the workers' tasks and the gateway work with, on this test's servers."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from market.escrow.reader import EscrowReader
from market.resources import Resources, open_resources
from market.settings import Settings
from tests.conftest import MODEL_ID, OPERATOR_PASSWORD, Chain
from tests.support.gateway.api import Gateway, all_nodes, open_gateway
from tests.support.gateway.api_served import Served, serve
from tests.support.gateway.chat_model import make_chat_model


@pytest.fixture
async def resources(
    make_settings: Callable[..., Settings], redis: Redis
) -> AsyncIterator[Resources]:
    """A worker's resources, without a chain."""
    async with open_resources(make_settings()) as opened:
        yield opened


@pytest.fixture
async def chain_resources(
    make_settings: Callable[..., Settings], redis: Redis, chain: Chain
) -> AsyncIterator[Resources]:
    """A worker's resources, with contracts deployed and no delays."""
    payments = {
        "escrow_contract": chain.deployment.escrow,
        "rpc_urls": [chain.url],
        "rpc_max_age": 0,
        "operator_keyfile": str(chain.keyfile),
        "operator_password": OPERATOR_PASSWORD,
        "release_delay": 0,
        "settle_amount": 0,
        "confirmations": 0,
    }
    async with open_resources(make_settings(payments=payments)) as opened:
        yield opened


@pytest.fixture
async def escrow(
    chain_resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[EscrowReader]:
    """The contract that those resources settle on; a development chain has blocks at once."""
    monkeypatch.setattr("workers.settlement.task.POLL_SECONDS", 0.01)
    async with EscrowReader.from_settings(chain_resources.settings.payments) as opened:
        yield opened


@pytest.fixture
async def empty_gateway(
    make_settings: Callable[..., Settings], redis: Redis
) -> AsyncIterator[Gateway]:
    """The gateway, with no node alive and no money in any wallet."""
    async with open_gateway(make_settings()) as opened:
        yield opened


@pytest.fixture
async def gateway(empty_gateway: Gateway) -> Gateway:
    """The gateway, with a node for each layer, and 1 FAR in the wallet that is logged in."""
    await empty_gateway.announce(*all_nodes())
    await empty_gateway.deposit("1")
    return empty_gateway


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a chat template."""
    return make_chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture
async def chat_gateway(
    make_settings: Callable[..., Settings], redis: Redis, chat_model: Path
) -> AsyncIterator[Gateway]:
    """As :func:`gateway`, with a model that chats."""
    models = [{"id": MODEL_ID, "path": str(chat_model), "payment_per_token": "0.0001"}]
    async with open_gateway(make_settings(models=models)) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


@pytest.fixture
async def served(gateway: Gateway) -> AsyncIterator[Served]:
    """The gateway behind a real server."""
    async with serve(gateway) as opened:
        yield opened
