"""Somebody has an API key, or half of one, and does with it what it is not for, on every route that
there is."""

import asyncio
import datetime as dt
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs

from api.routes import health
from market.identity.api_key_text import PREFIX, new_key
from market.identity.principal import KEY_SCOPES, Scope
from market.identity.tables import ApiKey
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    OTHER_WALLET,
    SECRET,
    WALLET,
    Gateway,
    problem,
    request_body,
)

UNCOUNTED = set(health.PATHS)
"""Paths on which no token is looked at: they say the same to everybody."""

NEEDS: dict[str, set[Scope]] = {
    f"POST {GENERATE}": {Scope.GENERATE},
    "GET /api/inference/jobs/{request_id}": {Scope.READ_JOBS},
    "GET /api/inference/jobs/{request_id}/events": {Scope.READ_JOBS},
    "DELETE /api/inference/jobs/{request_id}": {Scope.GENERATE, Scope.READ_JOBS},
    "GET /api/inference/jobs/{request_id}/receipt": {Scope.BILLING},
    "GET /api/billing/balance": {Scope.BILLING},
    "GET /api/billing/usage.csv": {Scope.BILLING},
    "GET /api/provider/earnings.csv": {Scope.BILLING},
    "GET /v1/key": set(),
    "POST /v1/chat/completions": {Scope.GENERATE},
    "POST /v1/completions": {Scope.GENERATE},
    "POST /v1/responses": {Scope.GENERATE},
    "GET /v1/responses/{response_id}": {Scope.READ_JOBS},
    "POST /v1/responses/{response_id}/cancel": {Scope.GENERATE, Scope.READ_JOBS},
}
"""What an API key needs for each route that asks who calls. Whatever is not here no key may do."""

GENERATING: dict[str, Callable[..., dict[str, Any]]] = {
    GENERATE: request_body,
    "/v1/chat/completions": lambda: {
        "model": MODEL_ID,
        "messages": [{"role": "user", "content": SECRET}],
    },
    "/v1/completions": lambda: {"model": MODEL_ID, "prompt": SECRET},
    "/v1/responses": lambda: {"model": MODEL_ID, "input": SECRET},
}
"""Routes that begin generations, and a body for each."""


@pytest.fixture
def gateway(chat_gateway: Gateway) -> Gateway:
    """With a model that every route serves."""
    return chat_gateway


def secured(gateway: Gateway) -> Iterator[tuple[str, str]]:
    """Method and path of each route of the OpenAPI document that asks who calls."""
    for method, path, operation in operations(gateway):
        if operation.get("security") and {} not in operation["security"]:
            yield method, path


def operations(gateway: Gateway) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in gateway.app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


async def ask(
    gateway: Gateway, method: str, path: str, headers: dict[str, str], body: object = None
) -> httpx.Response:
    """A request, with something for each parameter of the path."""
    return await gateway.client.request(
        method, re.sub("{[^}]*}", "some", path), headers=ASYNC | headers, json=body
    )


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def mutated(gateway: Gateway, **values: object) -> dict[str, str]:
    """Headers of a key whose row says something else by now."""
    headers = await gateway.key(scopes=sorted(KEY_SCOPES))
    async with gateway.sessions.begin() as db:
        await db.execute(update(ApiKey).values(**values))
    return headers


async def revoked(gateway: Gateway) -> dict[str, str]:
    return await mutated(gateway, revoked_at=dt.datetime.now(dt.UTC))


async def expired(gateway: Gateway) -> dict[str, str]:
    return await mutated(gateway, expires_at=dt.datetime.now(dt.UTC))


async def unknown(gateway: Gateway) -> dict[str, str]:
    return bearer(new_key())


async def mistyped(gateway: Gateway) -> dict[str, str]:
    key = (await gateway.key())["Authorization"]
    return {"Authorization": key[:-1] + ("0" if key[-1] != "0" else "1")}


async def cut(gateway: Gateway) -> dict[str, str]:
    return bearer(PREFIX)


BAD = {
    "revoked": (revoked, "api_key_revoked"),
    "expired": (expired, "api_key_expired"),
    "unknown": (unknown, "api_key_unknown"),
    "mistyped": (mistyped, "api_key_unknown"),
    "cut": (cut, "api_key_unknown"),
}


@pytest.mark.parametrize(("made", "code"), BAD.values(), ids=BAD)
async def test_a_key_that_is_not_good_is_refused_on_every_route(
    gateway: Gateway, made: Callable[[Gateway], Any], code: str
) -> None:
    """Also on those that anybody may ask: whoever shows it believes that it is good."""
    headers = await made(gateway)
    asked = [(method, path) for method, path, _ in operations(gateway) if path not in UNCOUNTED]
    assert len(asked) > 30
    before = await gateway.books()
    for method, path in asked:
        answer = await ask(gateway, method, path, headers, GENERATING.get(path, dict)() or None)
        problem(answer, 401, code)
        assert answer.headers["www-authenticate"] == "Bearer", path
    assert await gateway.books() == before


async def test_a_key_does_on_every_route_what_its_scopes_say_and_nothing_else(
    gateway: Gateway,
) -> None:
    routes = list(secured(gateway))
    assert NEEDS.keys() <= {f"{method} {path}" for method, path in routes}
    choices = itertools.chain.from_iterable(
        itertools.combinations(sorted(KEY_SCOPES), count) for count in range(len(KEY_SCOPES) + 1)
    )
    for scopes in choices:
        headers = await gateway.key(scopes=list(scopes))
        for method, path in routes:
            name = f"{method} {path}"
            answer = await ask(gateway, method, path, headers)
            if name in NEEDS and NEEDS[name] <= set(scopes):
                assert answer.status_code not in (401, 403), (name, scopes, answer.text)
            else:
                assert answer.status_code == 403, (name, scopes, answer.text)
                assert answer.json()["code"] in ("scope_missing", "forbidden"), name


async def test_where_a_token_is_optional_a_key_needs_its_scope_as_a_wallet_does(
    gateway: Gateway,
) -> None:
    headers = await gateway.key()
    for path in ("/api/provider/stats", "/api/provider/earnings/history"):
        problem(await ask(gateway, "GET", path, headers), 403, "scope_missing")
        allowed = await gateway.key(scopes=[Scope.BILLING])
        assert (await ask(gateway, "GET", path, allowed)).status_code == 200


@pytest.mark.parametrize("path", ["/api/nodes/register-distributed", "/nodes/register"])
async def test_a_key_registers_no_node(gateway: Gateway, path: str) -> None:
    body = {
        "wallet_address": WALLET,
        "model_id": MODEL_ID,
        "gpu_model": "",
        "vram_gb": 0,
        "public_addr": "a:1",
        "location": "",
    }
    headers = await gateway.key(scopes=sorted(KEY_SCOPES))
    problem(await ask(gateway, "POST", path, headers, body), 403, "scope_missing")


async def test_a_key_is_not_let_into_the_relay(gateway: Gateway) -> None:
    headers = await gateway.key(scopes=sorted(KEY_SCOPES))
    problem(await ask(gateway, "POST", "/api/relay/exchange", headers), 403, "scope_missing")


async def test_a_key_makes_no_keys_and_keeps_its_own_alive(gateway: Gateway) -> None:
    headers = await gateway.key(scopes=sorted(KEY_SCOPES))
    async with gateway.sessions() as db:
        key_id = await db.scalar(select(ApiKey.key_id))
    for method, path, body in (
        ("POST", "/api/keys", {"name": "more"}),
        ("PATCH", f"/api/keys/{key_id}", {"limit_day_far": None}),
        ("DELETE", f"/api/keys/{key_id}", None),
    ):
        problem(await ask(gateway, method, path, headers, body), 403, "scope_missing")


async def test_every_route_that_generates_is_known_here(gateway: Gateway) -> None:
    needing = {
        name.partition(" ")[2]
        for name, scopes in NEEDS.items()
        if scopes == {Scope.GENERATE} and name.startswith("POST")
    }
    assert needing == GENERATING.keys()


@pytest.mark.parametrize("path", GENERATING)
async def test_a_key_uses_no_other_models_than_its_own(gateway: Gateway, path: str) -> None:
    headers = await gateway.key(models=["another/model"])
    before = await gateway.books()
    answer = await ask(gateway, "POST", path, headers, GENERATING[path]())
    assert "another/model" in problem(answer, 403, "model_not_allowed")["detail"]
    assert await gateway.books() == before
    allowed = await gateway.key(models=[MODEL_ID])
    asking = asyncio.create_task(ask(gateway, "POST", path, allowed, GENERATING[path]()))
    assert await gateway.new_job()
    asking.cancel()


async def test_a_key_gets_no_other_models_job_by_its_wallets_idempotency_key(
    gateway: Gateway,
) -> None:
    again = {"Idempotency-Key": "again"}
    assert (await ask(gateway, "POST", GENERATE, again, request_body())).status_code == 202
    headers = await gateway.key(models=["another/model"]) | again
    problem(await ask(gateway, "POST", GENERATE, headers, request_body()), 403, "model_not_allowed")


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("period", ["day", "month", "total"])
async def test_a_key_spends_no_more_than_its_limit(
    gateway: Gateway, path: str, period: str
) -> None:
    headers = await gateway.key(**{f"limit_{period}_far": 0})
    before = await gateway.books()
    answer = await ask(gateway, "POST", path, headers, GENERATING[path]())
    assert problem(answer, 402, "key_limit_reached")["limit"] == period
    assert answer.headers["x-should-retry"] == "false"
    assert await gateway.books() == before


async def test_a_key_sees_its_own_wallets_jobs_alone(gateway: Gateway) -> None:
    job = await gateway.submit()
    other = await gateway.key(OTHER_WALLET, scopes=sorted(KEY_SCOPES))
    for method, path in (("GET", job.url), ("GET", f"{job.url}/events"), ("DELETE", job.url)):
        problem(await ask(gateway, method, path, other), 404, "job_not_found")


# ----- where the key may not be


async def test_no_log_and_no_key_of_redis_has_an_api_key(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)

    async def outage(*_: object) -> None:
        raise ConnectionError

    with capture_logs() as logged:
        made = await gateway.client.post("/api/keys", json={"name": "app"})
        headers = bearer(made.json()["key"])
        answers = [
            await ask(gateway, "POST", GENERATE, headers, request_body()),
            await ask(gateway, "GET", "/v1/key", headers),
            await ask(gateway, "GET", "/api/billing/balance", headers),
            await ask(gateway, "GET", "/v1/key", await mistyped(gateway)),
            await ask(gateway, "GET", "/v1/key", await unknown(gateway)),
        ]
        monkeypatch.setattr(gateway.services.key_lookups, "find", outage)
        answers.append(await ask(gateway, "GET", "/v1/key", headers))
    assert [answer.status_code for answer in answers] == [202, 200, 403, 401, 401, 503]
    kept = [str(entry) for entry in logged]
    kept += [record.getMessage() for record in caplog.records]
    kept += [str(name) for name in await gateway.redis.keys("*")]
    kept += [answer.text + str(answer.headers) for answer in answers]
    assert any("inference_accepted" in entry for entry in kept)
    for each in kept:
        found = re.findall(f"{PREFIX}[0-9A-Za-z]{{5,}}", each)
        assert not found, each
        assert SECRET not in each


async def test_a_request_reads_its_key_once(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = gateway.services.key_lookups
    find, found = lookups.find, []

    async def counted(text: str) -> object:
        found.append(text)
        return await find(text)

    monkeypatch.setattr(lookups, "find", counted)
    headers = await gateway.key()
    assert (await ask(gateway, "POST", GENERATE, headers, request_body())).status_code == 202
    assert len(found) == 1


@pytest.mark.parametrize("text", ["Bearer", "bearer  ", f"Basic {PREFIX}", PREFIX])
async def test_a_key_is_a_bearer_token_and_nothing_else(gateway: Gateway, text: str) -> None:
    answer = await ask(gateway, "GET", "/v1/key", {"Authorization": text})
    problem(answer, 401, "token_missing")
