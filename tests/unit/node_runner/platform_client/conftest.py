"""A server in the platform's place, and a client of it."""

from collections.abc import Iterator

import httpx
import pytest

from node_runner.platform_client import errors
from node_runner.platform_client.http import client
from tests.support.gateway.platform_server import PlatformServer, platform_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlatformServer]:
    monkeypatch.setattr(errors, "RETRY_DELAY", 0.01)
    with platform_server() as opened:
        yield opened


@pytest.fixture
def http(server: PlatformServer) -> Iterator[httpx.Client]:
    with client(server.url) as opened:
        yield opened
