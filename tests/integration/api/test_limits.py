"""How much one caller may ask: bodies, and rates."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
from redis.asyncio import Redis

from market.settings import Settings
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    OTHER_WALLET,
    Gateway,
    all_nodes,
    open_gateway,
    problem,
    request_body,
)
from tests.support.gateway.api_served import serve

MEGABYTE = 2**20
HOUR = 3600

Limited = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def limited(make_settings: Callable[..., Settings], redis: Redis) -> Limited:
    """The gateway with other limits, on whose generations nobody works."""

    def opened(**limits: object) -> AbstractAsyncContextManager[Gateway]:
        return open_gateway(make_settings(limits=limits))

    return opened


async def prepare(gateway: Gateway) -> None:
    await gateway.announce(*all_nodes())
    await gateway.deposit("1")
    await gateway.deposit("1", OTHER_WALLET)


async def ask(gateway: Gateway, address: str = "192.0.2.1", **headers: str) -> httpx.Response:
    """A generation asked for from an address."""
    transport = httpx.ASGITransport(gateway.app, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(
            GENERATE, json=request_body(), headers=ASYNC | gateway.login() | headers
        )


def check_limited(answer: httpx.Response) -> None:
    detail = problem(answer, 429, "rate_limited")["detail"]
    wait = answer.headers["retry-after"]
    assert f"Try again in {wait} seconds" in detail
    assert HOUR - 60 < int(wait) <= HOUR


async def test_generations_of_one_address(limited: Limited) -> None:
    async with limited(generations_per_ip="2/hour") as gateway:
        await prepare(gateway)
        assert [(await ask(gateway)).status_code for _ in range(2)] == [202, 202]
        before = await gateway.books()
        check_limited(await ask(gateway))
        check_limited(await ask(gateway, **gateway.login(OTHER_WALLET)))
        assert await gateway.books() == before
        assert (await ask(gateway, "192.0.2.2")).status_code == 202


async def test_generations_of_one_wallet(limited: Limited) -> None:
    async with limited(generations_per_wallet="2/hour") as gateway:
        await prepare(gateway)
        assert [(await ask(gateway, f"192.0.2.{n}")).status_code for n in (1, 2)] == [202, 202]
        before = await gateway.books()
        check_limited(await ask(gateway, "192.0.2.3"))
        assert await gateway.books() == before
        assert (await ask(gateway, **gateway.login(OTHER_WALLET))).status_code == 202


async def test_refused_requests_do_not_count(limited: Limited) -> None:
    async with limited(generations_per_ip="1/hour") as gateway:
        await prepare(gateway)
        wrong = await gateway.client.post(GENERATE, json=request_body(max_tokens=0))
        assert wrong.status_code == 422
        assert (await ask(gateway, "127.0.0.1")).status_code == 202


async def test_a_forwarded_address_is_not_believed(limited: Limited) -> None:
    async with limited(generations_per_ip="1/hour") as gateway:
        await prepare(gateway)
        assert (await ask(gateway, **{"X-Forwarded-For": "198.51.100.1"})).status_code == 202
        check_limited(await ask(gateway, **{"X-Forwarded-For": "198.51.100.2"}))


async def test_behind_a_proxy_the_address_that_it_saw_counts(limited: Limited) -> None:
    async with limited(generations_per_ip="1/hour", trust_forwarded_for=True) as gateway:
        await prepare(gateway)

        async def status(*forwarded: str) -> int:
            headers = [(name, value) for name, value in (ASYNC | gateway.login()).items()]
            headers += [("X-Forwarded-For", value) for value in forwarded]
            answer = await gateway.client.post(GENERATE, json=request_body(), headers=headers)
            return answer.status_code

        assert await status("198.51.100.1") == 202
        # What a client makes up stands before, in the same header or in one of its own.
        assert await status("203.0.113.1, 198.51.100.1") == 429
        assert await status("203.0.113.1", "198.51.100.1") == 429
        assert await status("198.51.100.1, 198.51.100.2") == 202
        # Without the header, or with an empty one, it is the peer.
        assert await status() == 202
        assert await status("") == 429


@pytest.mark.parametrize(
    ("limit", "method", "path", "body"),
    [
        ("logins_per_ip", "GET", "/api/auth/nonce", None),
        (
            "logins_per_ip",
            "POST",
            "/api/auth/login",
            {"wallet_address": "0x" + "11" * 20, "message": "", "signature": ""},
        ),
        (
            "registrations_per_ip",
            "POST",
            "/api/nodes/register-distributed",
            {
                "wallet_address": "0x" + "11" * 20,
                "model_id": "none",
                "gpu_model": "",
                "vram_gb": 0,
                "public_addr": "a:1",
                "location": "",
                "nonce": "",
                "signature": "",
            },
        ),
    ],
    ids=["nonce", "login", "register"],
)
async def test_logins_and_registrations_are_limited(
    limited: Limited, limit: str, method: str, path: str, body: object
) -> None:
    async with limited(**{limit: "3/hour"}) as gateway:
        answers = [await gateway.client.request(method, path, json=body) for _ in range(4)]
        assert 429 not in [answer.status_code for answer in answers[:3]]
        check_limited(answers[3])


class Chunks:
    """A body without a declared length, that counts what is taken of it."""

    def __init__(self, megabytes: int) -> None:
        self.taken = 0
        self._left = megabytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._left:
            self._left -= 1
            self.taken += 1
            yield b" " * MEGABYTE


@pytest.mark.parametrize(
    ("path", "limit"),
    [(GENERATE, MEGABYTE), ("/api/auth/login", 16_384), ("/api/nodes/heartbeat", 16_384)],
)
async def test_a_big_body(gateway: Gateway, path: str, limit: int) -> None:
    before = await gateway.books()
    answer = await gateway.client.post(path, content=b" " * 10 * MEGABYTE)
    assert str(limit) in problem(answer, 413, "body_too_large")["detail"]
    assert await gateway.books() == before


async def test_a_big_body_that_does_not_say_so(gateway: Gateway) -> None:
    before = await gateway.books()
    chunks = Chunks(10)
    answer = await gateway.client.post(
        GENERATE, content=chunks, headers={"Content-Type": "application/json"}
    )
    problem(answer, 413, "body_too_large")
    assert chunks.taken == 2
    assert await gateway.books() == before


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 5000])
async def test_a_length_that_is_none(gateway: Gateway, length: str) -> None:
    answer = await gateway.client.post(GENERATE, content=b"{}", headers={"Content-Length": length})
    problem(answer, 413, "body_too_large")


async def test_a_body_in_chunks_is_put_together(gateway: Gateway) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in httpx.Request("POST", "http://test", json=request_body()).content:
            yield bytes([byte])

    answer = await gateway.client.post(
        GENERATE, content=pieces(), headers=ASYNC | {"Content-Type": "application/json"}
    )
    assert answer.status_code == 202


@pytest.mark.parametrize("declared", [True, False])
async def test_a_big_body_on_a_real_connection(gateway: Gateway, declared: bool) -> None:
    async with serve(gateway) as served:
        content = b" " * 10 * MEGABYTE if declared else Chunks(10)
        try:
            answer = await served.client.post(GENERATE, content=content)
        except httpx.WriteError:
            return  # the server hung up before it had been sent, which is as good
        problem(answer, 413, "body_too_large")
        assert (await served.client.get("/healthz")).status_code == 200


async def test_the_largest_prompt_that_is_allowed(limited: Limited) -> None:
    async with limited(max_prompt_chars=20) as gateway:
        await prepare(gateway)
        at_limit = await gateway.client.post(
            GENERATE, json=request_body(prompt="x" * 20), headers=ASYNC
        )
        assert at_limit.status_code == 202
        beyond = await gateway.client.post(GENERATE, json=request_body(prompt="x" * 21))
        problem(beyond, 422, "prompt_too_long")
