"""How much one caller may ask: bodies, and rates."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
from redis.asyncio import Redis

from market.identity.api_key_text import new_key
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


def check_limited(answer: httpx.Response, limit: str) -> None:
    """Refused by a limit of an hour, which is longer than a client waits by itself."""
    named = problem(answer, 429, "rate_limited")
    assert named["limit"] == limit
    wait = int(re.search("Try again in ([0-9]+) seconds", str(named["detail"]))[1])  # type: ignore[index]
    assert HOUR - 60 < wait <= HOUR
    assert parsed(answer.headers["ratelimit"])[limit] == {"r": 0, "t": wait}
    assert parsed(answer.headers["ratelimit-policy"])[limit]["w"] == HOUR
    assert answer.headers["retry-after"] == "120"
    assert answer.headers["x-should-retry"] == "false"


async def test_generations_of_one_wallet(limited: Limited) -> None:
    async with limited(generations_per_wallet="2/hour") as gateway:
        await prepare(gateway)
        key = await gateway.key()
        assert (await ask(gateway, "192.0.2.1")).status_code == 202
        assert (await ask(gateway, "192.0.2.2", **key)).status_code == 202
        before = await gateway.books()
        for headers in ({}, key, await gateway.key()):
            check_limited(await ask(gateway, "192.0.2.3", **headers), "generations-per-wallet")
        assert await gateway.books() == before
        assert (await ask(gateway, **gateway.login(OTHER_WALLET))).status_code == 202


async def test_generations_of_one_key(limited: Limited) -> None:
    """A key's own limit, or that of all keys; and no other key's."""
    async with limited(generations_per_key="3/hour") as gateway:
        await prepare(gateway)
        for headers, most in (
            (await gateway.key(), 3),
            (await gateway.key(generations_per_minute=2), 2),
        ):
            for _ in range(most):
                assert (await ask(gateway, **headers)).status_code == 202
            answer = await ask(gateway, **headers)
            named = problem(answer, 429, "rate_limited")
            assert named["limit"] == "generations-per-key"
        assert (await ask(gateway)).status_code == 202


async def test_callers_with_a_wallet_or_a_key_are_not_counted_by_address(limited: Limited) -> None:
    """Many users of one office, or of one server, have one address."""
    async with limited(generations_per_ip="1/hour", bodies_per_ip="1/hour") as gateway:
        await prepare(gateway)
        for headers in (gateway.login(), gateway.login(OTHER_WALLET), await gateway.key()):
            for _ in range(2):
                assert (await ask(gateway, **headers)).status_code == 202


async def test_generations_of_callers_who_are_not_logged_in(limited: Limited) -> None:
    async with limited(generations_per_ip="2/hour") as gateway:
        await prepare(gateway)
        unknown = {"Authorization": f"Bearer {new_key()}"}
        for headers in ({"Authorization": ""}, unknown):
            assert (await ask(gateway, **headers)).status_code == 401
        check_limited(await ask(gateway, Authorization=""), "generations-per-address")
        check_limited(await ask(gateway, **unknown), "generations-per-address")
        # Who is logged in at this address is not kept from it.
        assert (await ask(gateway)).status_code == 202
        assert (await ask(gateway, "192.0.2.2", Authorization="")).status_code == 401


async def test_unknown_keys_are_looked_up_only_so_often(limited: Limited) -> None:
    async with limited(unknown_keys_per_ip="3/hour") as gateway:
        await prepare(gateway)
        for number in range(5):
            headers = {"Authorization": f"Bearer {new_key()}"}
            answer = await gateway.client.get("/api/inference/models", headers=headers)
            if number < 3:
                problem(answer, 401, "api_key_unknown")
            else:
                named = problem(answer, 429, "rate_limited")
                assert named["limit"] == "unknown-keys-per-address"


async def test_refused_requests_do_not_count(limited: Limited) -> None:
    async with limited(generations_per_wallet="1/hour") as gateway:
        await prepare(gateway)
        wrong = await gateway.client.post(GENERATE, json=request_body(max_tokens=0))
        assert wrong.status_code == 422
        assert (await ask(gateway, "127.0.0.1")).status_code == 202


async def nonce(gateway: Gateway, *forwarded: str) -> int:
    """The status of a request that is counted by address, from behind proxies."""
    headers = [("X-Forwarded-For", value) for value in forwarded]
    return (await gateway.client.get("/api/auth/nonce", headers=headers)).status_code


async def test_a_forwarded_address_is_not_believed(limited: Limited) -> None:
    async with limited(logins_per_ip="1/hour") as gateway:
        assert await nonce(gateway, "198.51.100.1") == 200
        assert await nonce(gateway, "198.51.100.2") == 429


async def test_behind_a_proxy_the_address_that_it_saw_counts(limited: Limited) -> None:
    async with limited(logins_per_ip="1/hour", trust_forwarded_for=True) as gateway:
        assert await nonce(gateway, "198.51.100.1") == 200
        # What a client makes up stands before, in the same header or in one of its own.
        assert await nonce(gateway, "203.0.113.1, 198.51.100.1") == 429
        assert await nonce(gateway, "203.0.113.1", "198.51.100.1") == 429
        assert await nonce(gateway, "198.51.100.1, 198.51.100.2") == 200
        # Without the header, or with an empty one, it is the peer.
        assert await nonce(gateway) == 200
        assert await nonce(gateway, "") == 429


# ----- what the headers say


def parsed(header: str) -> dict[str, dict[str, int]]:
    """A list of structured fields (RFC 9651): strings with whole numbers as parameters."""
    found = {}
    for item in header.split(", "):
        name, *parameters = item.split(";")
        assert re.fullmatch('"[a-z-]+"', name), header
        pairs = (parameter.split("=") for parameter in parameters)
        found[name.strip('"')] = {key: int(value) for key, value in pairs}
    return found


async def test_every_limited_answer_says_what_is_left(limited: Limited) -> None:
    async with limited(generations_per_wallet="3/hour") as gateway:
        await prepare(gateway)
        headers = await gateway.key(generations_per_minute=2)
        answers = [await ask(gateway, **headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        for number, answer in enumerate(answers):
            policies, left = (
                parsed(answer.headers["ratelimit-policy"]),
                parsed(answer.headers["ratelimit"]),
            )
            assert policies["generations-per-key"] == {"q": 2, "w": 60}
            assert left["generations-per-key"]["r"] == max(0, 1 - number)
            assert 0 < left["generations-per-key"]["t"] <= 60
            if number < 2:
                assert policies["generations-per-wallet"] == {"q": 3, "w": HOUR}
                assert left["generations-per-wallet"]["r"] == 2 - number
            assert policies["requests-per-wallet"] == {"q": 6000, "w": 60}
            assert policies.keys() == left.keys()
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(max(0, 1 - number))
            assert re.fullmatch(r"[0-9]+s", answer.headers["x-ratelimit-reset-requests"])
        assert int(answers[2].headers["retry-after"]) <= 60
        assert "x-should-retry" not in answers[2].headers


@pytest.mark.parametrize(
    ("path", "policy"),
    [
        ("/api/inference/models", "reads-per-address"),
        ("/api/auth/nonce", "nonces-per-address"),
        ("/api/billing/balance", "requests-per-wallet"),
        ("/api/inference/jobs/req_none", "requests-per-wallet"),
    ],
)
async def test_limits_of_other_routes_are_told_too(
    gateway: Gateway, path: str, policy: str
) -> None:
    answer = await gateway.client.get(path)
    assert parsed(answer.headers["ratelimit"])[policy]["r"] > 0


async def test_what_is_not_limited_says_nothing(gateway: Gateway) -> None:
    answer = await gateway.client.get("/healthz")
    assert not [name for name in answer.headers if "ratelimit" in name]


@pytest.mark.parametrize(
    ("limit", "policy", "method", "path", "body"),
    [
        ("logins_per_ip", "nonces-per-address", "GET", "/api/auth/nonce", None),
        (
            "logins_per_ip",
            "logins-per-address",
            "POST",
            "/api/auth/login",
            {"wallet_address": "0x" + "11" * 20, "message": "", "signature": ""},
        ),
        (
            "registrations_per_ip",
            "registrations-per-address",
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
    limited: Limited, limit: str, policy: str, method: str, path: str, body: object
) -> None:
    async with limited(**{limit: "3/hour"}) as gateway:
        answers = [await gateway.client.request(method, path, json=body) for _ in range(4)]
        assert 429 not in [answer.status_code for answer in answers[:3]]
        check_limited(answers[3], policy)


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
