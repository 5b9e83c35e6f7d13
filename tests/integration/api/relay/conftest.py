"""A replica of the gateway, an empty Redis and its client."""

from collections.abc import Callable, Iterator

import pytest
import redis

from market.settings import Settings
from stack.servers import Postgres
from tests.support.api import shared_database
from tests.support.relay import (
    Replica,
    replica,
)


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    with shared_database(postgres) as url:
        yield url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connected:
        connected.flushall()
        yield connected


@pytest.fixture
def settings(make_settings: Callable[..., Settings], client: redis.Redis) -> Settings:
    return make_settings()


@pytest.fixture
def here(settings: Settings) -> Iterator[Replica]:
    with replica(settings) as started:
        yield started
