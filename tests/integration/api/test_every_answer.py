"""What every answer has, whoever gives it: its name, and what a page of another origin needs to
read it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from api.middleware import request_limit
from market import ledger
from market.settings import Settings
from stack import plan
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    Gateway,
    all_nodes,
    open_gateway,
    problem,
    request_body,
)

PAGE = "https://app.example.org"
STRANGER = "https://elsewhere.example.org"
NONCE = "/api/auth/nonce"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """For pages of one origin, and of any port of another."""
    settings = make_settings(
        cors_origins=f"{PAGE}, http://localhost:*", limits={"logins_per_ip": "3/hour"}
    )
    async with open_gateway(settings) as opened:
        await opened.announce(*all_nodes())
        await opened.deposit("1")
        yield opened


async def outage(*_: object, **__: object) -> None:
    raise ConnectionError


async def bug(*_: object, **__: object) -> None:
    raise RuntimeError


async def no_nodes(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    await gateway.redis.flushall()
    return await gateway.client.post(GENERATE, json=request_body(), headers={"Origin": PAGE})


async def a_bug(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    monkeypatch.setattr(ledger, "hold", bug)
    transport = httpx.ASGITransport(gateway.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        headers = gateway.login() | {"Origin": PAGE}
        return await client.post(GENERATE, json=request_body(), headers=headers)


async def an_outage(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    monkeypatch.setattr(request_limit.RequestLimit, "_admit", outage)
    return await gateway.client.get(NONCE, headers={"Origin": PAGE})


async def too_often(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    for _ in range(3):
        await gateway.client.get(NONCE)
    return await gateway.client.get(NONCE, headers={"Origin": PAGE})


def request(method: str, path: str, **options: Any) -> Callable[..., Awaitable[httpx.Response]]:
    async def ask(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
        headers = {"Origin": PAGE} | options.pop("headers", {})
        return await gateway.client.request(method, path, headers=headers, **options)

    return ask


ANSWERS: dict[str, tuple[int, Callable[..., Awaitable[httpx.Response]]]] = {
    "an answer": (200, request("GET", "/api/inference/models")),
    "accepted": (202, request("POST", GENERATE, json=request_body(), headers=ASYNC)),
    "a file": (200, request("GET", "/static/style.css")),
    "malformed": (400, request("POST", GENERATE, content=b"{", headers=JSON)),
    "no token": (401, request("POST", GENERATE, headers={"Authorization": ""})),
    "forbidden": (403, request("POST", "/api/nodes/heartbeat", json={})),
    "nothing there": (404, request("GET", "/nothing")),
    "no such job": (404, request("GET", "/api/inference/jobs/req_none")),
    "no such method": (405, request("PUT", GENERATE)),
    "options": (204, request("OPTIONS", GENERATE)),
    "a big body": (413, request("POST", "/api/auth/login", content=b" " * 20_000)),
    "a body where none is": (413, request("GET", "/api/inference/models", content=b"{}")),
    "a wrong field": (422, request("POST", GENERATE, json=request_body(top_p=2))),
    "too often": (429, too_often),
    "a bug": (500, a_bug),
    "an outage": (503, an_outage),
    "no route": (503, no_nodes),
}


@pytest.mark.parametrize(("status", "ask"), ANSWERS.values(), ids=ANSWERS)
async def test_a_page_may_read_every_answer_and_its_name(
    gateway: Gateway,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    ask: Callable[..., Awaitable[httpx.Response]],
) -> None:
    answer = await ask(gateway, monkeypatch)
    assert answer.status_code == status, answer.text
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "Origin" in answer.headers["vary"]
    exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert exposed >= READ
    assert len(answer.headers["x-request-id"]) == 32


READ = {
    "Retry-After",
    "X-Request-Id",
    "X-Should-Retry",
    "Location",
    "Allow",
    "RateLimit",
    "RateLimit-Policy",
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
}
"""What clients read of an answer."""

ORIGINS = {
    PAGE: True,
    "http://localhost:5173": True,
    "http://localhost": True,
    STRANGER: False,
    f"{PAGE}:8443": False,
    f"{PAGE}.evil.example": False,
    f"https://evil.example/{PAGE}": False,
    "http://localhost.evil.example:80": False,
    "http://app.example.org": False,
    "https://appXexample.org": False,
    "null": False,
}

SENT = "authorization,cache-control,content-type,idempotency-key,last-event-id,prefer"


OF_OPENAI = (
    "accept,authorization,content-type,idempotency-key,openai-beta,openai-organization,"
    "openai-project,user-agent,x-stainless-arch,x-stainless-async,x-stainless-helper-method,"
    "x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-poll-helper,"
    "x-stainless-read-timeout,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout,http-referer,x-title"
)
"""What the packages `openai` send, and OpenRouter's examples."""


@pytest.mark.parametrize("headers", [SENT, OF_OPENAI])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "DELETE"])
async def test_a_page_may_send_what_clients_send(
    gateway: Gateway, headers: str, method: str
) -> None:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    answer = await gateway.client.options("/v1/key", headers=asked | {"Origin": PAGE})
    assert answer.status_code == 200, answer.text
    allowed = answer.headers["access-control-allow-headers"].split(",")
    assert {name.strip().lower() for name in allowed} >= set(headers.split(","))
    assert method in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("origin", "method", "reason"),
    [
        (STRANGER, "POST", "origin"),
        (PAGE, "PUT", "method"),
        (STRANGER, "PUT", "origin, method"),
    ],
)
async def test_a_preflight_that_is_refused_says_why(
    gateway: Gateway, origin: str, method: str, reason: str
) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    answer = await gateway.client.options(GENERATE, headers=headers)
    assert problem(answer, 400, "preflight_refused")["detail"].endswith(f"allowed: {reason}.")
    assert answer.headers.get("access-control-allow-origin") == (PAGE if origin == PAGE else None)
    assert answer.headers["vary"].startswith("Origin")


async def test_which_origins_may(gateway: Gateway) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": SENT}
    for origin, allowed in ORIGINS.items():
        preflight = await gateway.client.options(GENERATE, headers=asked | {"Origin": origin})
        assert (preflight.status_code == 200) is allowed, origin
        plain = await gateway.client.get("/healthz", headers={"Origin": origin})
        for answer in (preflight, plain):
            found = answer.headers.get("access-control-allow-origin")
            assert found == (origin if allowed else None), origin
            assert "access-control-allow-credentials" not in answer.headers


async def test_all_origins(make_settings: Callable[..., Settings], redis: Redis) -> None:
    async with open_gateway(make_settings(cors_origins="*")) as gateway:
        answer = await gateway.client.get("/nothing", headers={"Origin": STRANGER})
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_no_origin_unless_the_operator_says_so(empty_gateway: Gateway) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    preflight = await empty_gateway.client.options(GENERATE, headers=asked)
    assert preflight.headers["allow"] == "OPTIONS, POST"
    plain = await empty_gateway.client.get("/healthz", headers={"Origin": PAGE})
    for answer in (preflight, plain):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin",
    [
        "app.example.org",
        f"{PAGE}/",
        f"{PAGE}/path",
        "https://*.example.org",
        "HTTPS://A.example",
        "",
    ],
)
def test_what_is_no_origin_ends_the_start(
    make_settings: Callable[..., Settings], origin: str
) -> None:
    with pytest.raises(ValidationError, match="no origin"):
        make_settings(cors_origins=[origin])


def test_pages_beside_the_development_stack_may(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_CORS_ORIGINS", plan.SETTINGS["FAR_CORS_ORIGINS"])
    assert "http://localhost:*" in make_settings().cors_origins


async def test_names_differ_and_are_logged(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs([merge_contextvars]) as logged:
        answers = [await a_bug(gateway, monkeypatch) for _ in range(2)]
    names = [answer.headers["x-request-id"] for answer in answers]
    assert names[0] != names[1]
    told = await gateway.client.get("/healthz", headers={"X-Request-Id": "a\tname"})
    assert told.headers["x-request-id"] != "a\tname"
    found = [entry["http_request_id"] for entry in logged if entry["event"] == "unhandled_error"]
    assert found == names
