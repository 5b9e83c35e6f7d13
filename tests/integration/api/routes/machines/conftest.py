"""A gateway that machines may poll twenty times a second."""

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis

from market.settings import Settings
from stack.servers import Postgres
from tests.support.api import (
    Gateway,
    open_gateway,
    shared_database,
)
from tests.support.machine_api import AUTH


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    """One for all: each test looks at its own machines."""
    with shared_database(postgres) as url:
        yield url


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    settings = make_settings(auth=AUTH, public_url="https://mesh.example")
    async with open_gateway(settings) as opened:
        yield opened
