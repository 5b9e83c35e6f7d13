"""A caller changes, or makes up, the address that limits count him by."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
import uvicorn
from redis.asyncio import Redis

from cli import discovery
from market.settings import Settings
from stack.servers import gateway_command
from tests.support.gateway.api import PATIENCE, Gateway, open_gateway
from tests.support.gateway.api_served import serve

NONCE = "/api/auth/nonce"

Opened = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def opened(make_settings: Callable[..., Settings], redis: Redis) -> Opened:
    def open_limited(**limits: object) -> AbstractAsyncContextManager[Gateway]:
        return open_gateway(make_settings(limits={"logins_per_ip": "2/hour", **limits}))

    return open_limited


@pytest.fixture
async def proxied(opened: Opened) -> AsyncIterator[Gateway]:
    """Behind one proxy, at 127.0.0.1."""
    async with opened(trusted_proxies=1) as gateway:
        yield gateway


async def ask(gateway: Gateway, peer: str, *headers: tuple[str, str]) -> int:
    """The status of a request from a peer."""
    transport = httpx.ASGITransport(gateway.app, client=(peer, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return (await client.get(NONCE, headers=list(headers))).status_code


async def test_a_household_of_ipv6_is_one_caller(opened: Opened) -> None:
    async with opened() as gateway:
        peers = [f"2001:db8:0:7::{number:x}" for number in (1, 0xFFFF, 0xABCD)]
        peers.append("2001:db8:0:7:ffff:ffff:ffff:ffff")
        assert [await ask(gateway, peer) for peer in peers] == [200, 200, 429, 429]
        assert await ask(gateway, "2001:db8:0:8::1") == 200


async def test_a_site_of_ipv6_may_ask_more_and_not_without_end(opened: Opened) -> None:
    async with opened(ipv6_site_factor=3) as gateway:
        peers = [f"2001:db8:1:{number:x}::1" for number in range(8)]
        assert [await ask(gateway, peer) for peer in peers] == [200] * 6 + [429] * 2
        assert await ask(gateway, "2001:db8:2::1") == 200


async def test_a_household_that_is_refused_takes_nothing_from_its_site(opened: Opened) -> None:
    async with opened(ipv6_site_factor=2) as gateway:
        answers = [await ask(gateway, "2001:db8:1:1::1") for _ in range(20)]
        assert answers == [200] * 2 + [429] * 18
        assert await ask(gateway, "2001:db8:1:2::1") == 200


async def test_a_site_that_is_refused_takes_nothing_from_its_households(opened: Opened) -> None:
    async with opened(ipv6_site_factor=1) as gateway:
        answers = [await ask(gateway, f"2001:db8:1:{number:x}::1") for number in (1, 1, 2, 2, 2)]
        assert answers == [200, 200, 429, 429, 429]
        windows = [key.decode() async for key in gateway.redis.scan_iter("*nonce*")]
        assert not any("2001:db8:1:2::/64" in window for window in windows)
        assert any("2001:db8:1:1::/64" in window for window in windows)


async def test_ipv4_within_ipv6_is_ipv4(opened: Opened) -> None:
    async with opened() as gateway:
        peers = ["192.0.2.7", "::ffff:192.0.2.7", "::ffff:c000:207"]
        assert [await ask(gateway, peer) for peer in peers] == [200, 200, 429]
        assert await ask(gateway, "::ffff:192.0.2.8") == 200  # not all of ::ffff:0:0/96


@pytest.mark.parametrize(
    "spellings",
    [
        ["192.0.2.7", "192.0.2.7:1", '"192.0.2.7"', "[::ffff:192.0.2.7]:80", " 192.0.2.7 "],
        ["2001:db8::1", "2001:0DB8:0::1", "[2001:db8::2]:4711", "[2001:db8::1%25x]", "2001:db8::3"],
    ],
)
async def test_spellings_of_an_address_are_one(proxied: Gateway, spellings: list[str]) -> None:
    answers = [await ask(proxied, "127.0.0.1", ("X-Forwarded-For", each)) for each in spellings]
    assert answers == [200, 200, 429, 429, 429]


async def test_both_headers_name_one_caller(proxied: Gateway) -> None:
    headers = [
        ("X-Forwarded-For", "192.0.2.7"),
        ("Forwarded", "for=192.0.2.7"),
        ("Forwarded", 'for="192.0.2.7:4711";proto=https'),
        ("Forwarded", "For=6.6.6.6, by=1.1.1.1;FOR=192.0.2.7"),
    ]
    answers = [await ask(proxied, "127.0.0.1", header) for header in headers]
    assert answers == [200, 200, 429, 429]


MADE_UP = {
    "before what the proxy adds": [("X-Forwarded-For", "{n}, 192.0.2.7")],
    "in a header of its own": [("X-Forwarded-For", "{n}"), ("X-Forwarded-For", "192.0.2.7")],
    "in the other header": [("X-Forwarded-For", "192.0.2.7"), ("Forwarded", "for={n}")],
    "in the other header, before": [("Forwarded", "for={n}"), ("X-Forwarded-For", "192.0.2.7")],
    "in quotes that stay open": [("X-Forwarded-For", '"{n}, 192.0.2.7')],
    "in Forwarded's quotes": [("Forwarded", 'for="{n}, for=192.0.2.7')],
    "as the host": [("Forwarded", 'for=192.0.2.7;host="x,for={n}"')],
    "as a second name": [("Forwarded", "for=192.0.2.7;for={n}")],
    "as the port": [("X-Forwarded-For", "192.0.2.7:{p}")],
    "as the zone": [("Forwarded", 'for="[2001:db8::1%{p}]"')],
    "as a household": [("X-Forwarded-For", "2001:db8::{p}")],
    "as no address": [("X-Forwarded-For", "_{p}")],
    "as no address in Forwarded": [("Forwarded", "for=_{p}")],
    "as a name": [("X-Forwarded-For", "host{p}.example")],
    "as the real address": [("X-Real-IP", "{n}"), ("X-Forwarded-For", "192.0.2.7")],
}


@pytest.mark.parametrize("headers", MADE_UP.values(), ids=MADE_UP)
async def test_what_a_caller_makes_up_gives_him_no_new_window(
    proxied: Gateway, headers: list[tuple[str, str]]
) -> None:
    answers = []
    for number in range(1, 6):
        made_up = {"n": f"198.51.100.{number}", "p": f"{number}"}
        given = [(name, value.format(**made_up)) for name, value in headers]
        answers.append(await ask(proxied, "127.0.0.1", *given))
    assert answers == [200, 200, 429, 429, 429]


async def test_without_a_trusted_proxy_no_header_counts(opened: Opened) -> None:
    async with opened() as gateway:
        answers = [
            await ask(gateway, "192.0.2.7", (name, f"for=198.51.100.{number}"))
            for number, name in enumerate(["Forwarded", "X-Forwarded-For", "X-Real-IP"])
        ]
        assert answers == [200, 200, 429]


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (("X-Forwarded-For", "[2001:DB8::1]:4711"), "2001:db8::1"),
        (("Forwarded", 'for="[::ffff:203.0.113.9]:1"'), "203.0.113.9"),
        (("X-Forwarded-For", "unknown"), "127.0.0.1"),
    ],
)
async def test_where_a_caller_is_looked_up_by_the_address_that_limits_count(
    proxied: Gateway, given: tuple[str, str], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(proxied.services.geoip, "find", asked.append)
    body = {
        "wallet_address": "0x" + "11" * 20,
        "model_id": next(iter(proxied.services.catalog)).id,
        "gpu_model": "",
        "vram_gb": 0,
        "public_addr": "a:1",
        "location": "",
        "nonce": "n",
        "signature": "0x",
    }
    await proxied.client.post("/api/nodes/register-distributed", json=body, headers=[given])
    assert asked == [seen]


async def test_a_trailer_is_no_header(opened: Opened) -> None:
    async with (
        opened(trusted_proxies=1, probes_per_ip="2/hour") as gateway,
        serve(gateway) as served,
    ):
        answers = [await _with_trailer(served.port, f"198.51.100.{number}") for number in range(4)]
        assert answers == [200, 200, 429, 429]


async def _with_trailer(port: int, made_up: str) -> int:
    """The status of a request that names a caller behind its body, too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = ["POST /api/discovery/probe HTTP/1.1", "Host: gateway", "Connection: close"]
    head += ["X-Forwarded-For: 203.0.113.9", "Transfer-Encoding: chunked", ""]
    body = ["1", "x", "0", f"X-Forwarded-For: {made_up}", "", ""]
    writer.write("\r\n".join(head + body).encode())
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return int(answer.split()[1])


def test_no_api_is_started_with_the_servers_own_belief_in_headers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []

    def keep(name: str, command: list[str], stop: threading.Event) -> None:
        started.append(command)

    monkeypatch.setattr(discovery, "_keep", keep)
    monkeypatch.setattr(discovery.signal, "signal", lambda *_: None)
    discovery.discovery(print_peers=False)
    commands = [command[1:] for command in started if "uvicorn" in command]
    assert len(commands) == 1
    assert all(command[0] == sys.executable for command in started)
    for module, *options in (gateway_command(8000)[1:], commands[0][1:]):
        assert module == "uvicorn"
        params = uvicorn.main.make_context("uvicorn", options).params
        assert params["proxy_headers"] is False
        assert params["http"] == "api.server.http_protocol:LimitedHttpProtocol"
