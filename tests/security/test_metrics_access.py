"""A stranger reads the operator's metrics, directly or through a proxy."""

from collections.abc import Callable

import httpx
import pytest
from redis.asyncio import Redis

from market.settings import Settings
from tests.support.gateway.api import (
    Gateway,
    open_gateway,
    problem,
)

METRICS = "/metrics"


async def metrics_seen(gateway: Gateway, peer: str, *headers: tuple[str, str]) -> int:
    transport = httpx.ASGITransport(gateway.app, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get(METRICS, headers=list(headers))
    if answer.status_code != 200:
        problem(answer, 403, "forbidden")
        assert "far_mesh" not in answer.text
    return answer.status_code


@pytest.mark.parametrize("peer", ["198.51.100.1", "10.0.0.1", "2001:db8::1", "", "unknown"])
async def test_metrics_are_not_for_everybody(empty_gateway: Gateway, peer: str) -> None:
    assert await metrics_seen(empty_gateway, peer) == 403


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.1.2.3"])
async def test_metrics_are_for_this_machine(empty_gateway: Gateway, peer: str) -> None:
    assert await metrics_seen(empty_gateway, peer) == 200


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-For", "198.51.100.1"),
        ("Forwarded", "for=127.0.0.1"),
        ("Forwarded", "for=unknown"),
        ("X-Real-IP", "127.0.0.1"),
        ("Via", "1.1 proxy"),
    ],
)
async def test_what_comes_through_a_proxy_is_not_this_machine(
    empty_gateway: Gateway, header: tuple[str, str]
) -> None:
    assert await metrics_seen(empty_gateway, "127.0.0.1", header) == 403


async def test_metrics_behind_a_trusted_proxy(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    limits = {"trusted_proxies": 1, "metrics_networks": "10.1.0.0/16, 127.0.0.0/8"}
    async with open_gateway(make_settings(limits=limits)) as gateway:
        proxy = "127.0.0.1"
        stranger, prometheus = ("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "10.1.2.3")
        assert await metrics_seen(gateway, "10.1.2.3") == 200
        assert await metrics_seen(gateway, "10.2.2.3") == 403
        assert await metrics_seen(gateway, proxy, prometheus) == 200
        assert await metrics_seen(gateway, proxy, stranger) == 403
        assert await metrics_seen(gateway, proxy, ("X-Forwarded-For", "10.1.2.3, garbage")) == 403
        # A header of the other kind makes the address uncertain; it is then not the proxy's.
        for made_up in ("for=10.1.2.3", "for=127.0.0.1", "x"):
            assert await metrics_seen(gateway, proxy, stranger, ("Forwarded", made_up)) == 403
