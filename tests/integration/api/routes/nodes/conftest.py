"""A gateway for nodes of a trusted provider."""

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis

from market.settings import Settings
from stack.servers import Postgres
from tests.support.api import (
    PROVIDER,
    Gateway,
    open_gateway,
    shared_database,
)
from tests.support.node_api import TTL


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    """One for all: each test looks at its own nodes."""
    with shared_database(postgres) as url:
        yield url


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """A gateway whose operator trusts the provider with the edge, and without any node yet."""
    discovery = {
        "trusted_wallets": [PROVIDER.address],
        "node_ttl": TTL,
        "health_check_interval": 12,
    }
    async with open_gateway(
        make_settings(discovery=discovery, public_url="https://mesh.example")
    ) as opened:
        yield opened
