"""Who is calling: tokens, and the login with a wallet."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest

from api.http.services import open_services
from market.identity import wallet_login
from stack.servers import Postgres
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    STRANGER,
    USER,
    WALLET,
    Gateway,
    problem,
    request_body,
    shared_database,
)
from tests.support.gateway.login import fresh_nonce, instant, login, login_message, signed

HEARTBEAT = {
    "node_id": "node_0",
    "is_healthy": True,
    "latency_ms": 45,
    "throughput_tokens_per_sec": 12,
}
USER_ENDPOINTS = [
    ("POST", GENERATE),
    ("GET", "/api/inference/jobs/req_1"),
    ("GET", "/api/inference/jobs/req_1/events"),
    ("DELETE", "/api/inference/jobs/req_1"),
]


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    """One for all: logging in writes nothing."""
    with shared_database(postgres) as url:
        yield url


def token(gateway: Gateway, **changes: object) -> str:
    """A user's token, with other claims."""
    claims = {"sub": WALLET, "kind": "user", "exp": int(time.time()) + 60} | changes
    secret = gateway.services.settings.auth.jwt_secret.get_secret_value()
    return jwt.encode({name: claims[name] for name in claims if claims[name]}, secret, "HS256")


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


async def test_a_wallet_logs_in_and_generates(gateway: Gateway) -> None:
    offer = (await gateway.client.get("/api/auth/nonce")).json()
    assert offer["domain"] == "test"
    assert offer["expires_in"] == 300
    answer = await login(gateway, login_message(offer["nonce"]))
    assert answer.status_code == 200, answer.text
    session = answer.json()
    assert session["wallet_address"] == WALLET
    assert session["expires_in"] == 24 * 3600
    accepted = await gateway.client.post(
        GENERATE,
        json=request_body(),
        headers=bearer(session["token"]) | ASYNC,
    )
    assert accepted.status_code == 202


async def test_a_login_message_works_once(empty_gateway: Gateway) -> None:
    message = login_message(await fresh_nonce(empty_gateway))
    assert (await login(empty_gateway, message)).status_code == 200
    problem(await login(empty_gateway, message), 401, "nonce_unknown")


async def test_a_nonce_that_was_never_handed_out(empty_gateway: Gateway) -> None:
    problem(await login(empty_gateway, login_message("f" * 32)), 401, "nonce_unknown")


async def test_a_wrong_signature_does_not_use_the_nonce_up(empty_gateway: Gateway) -> None:
    message = login_message(await fresh_nonce(empty_gateway))
    forged = await login(empty_gateway, message, signature=signed(message, STRANGER))
    problem(forged, 401, "signature_mismatch")
    assert (await login(empty_gateway, message)).status_code == 200


@pytest.mark.parametrize(
    "signature",
    ["", "0x", "signed", "0x00", "0x" + "00" * 65, "0x" + "ff" * 65, "0x" + "11" * 400, "\x00"],
)
async def test_a_signature_that_is_none(empty_gateway: Gateway, signature: str) -> None:
    message = login_message(await fresh_nonce(empty_gateway))
    problem(await login(empty_gateway, message, signature=signature), 401, "signature_mismatch")


async def test_a_wallet_that_the_message_does_not_name(empty_gateway: Gateway) -> None:
    message = login_message(await fresh_nonce(empty_gateway))
    answer = await login(empty_gateway, message, wallet_address=STRANGER.address)
    assert "another wallet" in problem(answer, 401, "signature_mismatch")["detail"]


WRONG_MESSAGES = {
    "another domain": ({"domain": "evil.example"}, "domain_mismatch"),
    "a domain that ends like ours": ({"domain": "not.test"}, "domain_mismatch"),
    "expired": ({"Expiration Time": instant(minutes=-1)}, "login_message_expired"),
    "without expiry": ({"Expiration Time": None}, "login_message_invalid"),
    "expiry on no day": ({"Expiration Time": "2035-02-30T00:00:00Z"}, "login_message_invalid"),
    "expiry without zone": ({"Expiration Time": "2035-01-01T00:00:00"}, "login_message_invalid"),
    "odd zone": ({"Expiration Time": "2035-01-01T00:00:00|01:00"}, "login_message_invalid"),
    "not valid yet": ({"Not Before": instant(minutes=24 * 60)}, "login_message_invalid"),
    "address with a wrong checksum": (
        {"address": "0x" + USER.address[2:].swapcase()},
        "login_message_invalid",
    ),
    "short nonce": ({"Nonce": "abc"}, "login_message_invalid"),
}


@pytest.mark.parametrize(("changes", "code"), WRONG_MESSAGES.values(), ids=WRONG_MESSAGES)
async def test_a_wrong_message(
    empty_gateway: Gateway, changes: dict[str, str | None], code: str
) -> None:
    message = login_message(await fresh_nonce(empty_gateway), **changes)
    problem(await login(empty_gateway, message), 401, code)


@pytest.mark.parametrize(
    "changes",
    [{"Expiration Time": instant(minutes=-30)}, {"Not Before": instant(minutes=30)}],
    ids=["expired", "not valid yet"],
)
async def test_a_clock_may_be_some_seconds_off(
    empty_gateway: Gateway, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]
) -> None:
    monkeypatch.setattr(wallet_login, "CLOCK_SKEW", 3600.0)
    message = login_message(await fresh_nonce(empty_gateway), **changes)
    assert (await login(empty_gateway, message)).status_code == 200


async def test_a_message_that_is_no_text(empty_gateway: Gateway) -> None:
    body = {"wallet_address": USER.address, "message": "\ud800", "signature": "0x"}
    answer = await empty_gateway.client.post(
        "/api/auth/login",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    problem(answer, 422, "message_wrong_type")


@pytest.mark.parametrize(
    "text", ["", "log me in", "\x00", "a" * 4096, "a" * 2000 + "://" + "b" * 2000]
)
async def test_a_message_of_another_kind_is_refused_at_once(
    empty_gateway: Gateway, text: str
) -> None:
    started = time.perf_counter()
    problem(await login(empty_gateway, text), 401, "login_message_invalid")
    assert time.perf_counter() - started < 1


async def test_a_message_that_is_too_long(empty_gateway: Gateway) -> None:
    problem(await login(empty_gateway, "a" * 4097), 422, "message_too_long")


@pytest.mark.parametrize("wallet", ["", "0x12", "0x" + "g" * 40, WALLET[2:], WALLET + "\n"])
async def test_a_malformed_wallet(empty_gateway: Gateway, wallet: str) -> None:
    message = login_message(await fresh_nonce(empty_gateway))
    answer = await login(empty_gateway, message, wallet_address=wallet)
    problem(answer, 422, "wallet_address_malformed")


@pytest.mark.parametrize(("method", "path"), USER_ENDPOINTS)
async def test_endpoints_of_users_want_a_token(
    empty_gateway: Gateway, method: str, path: str
) -> None:
    body = request_body() if method == "POST" else None
    del empty_gateway.client.headers["Authorization"]
    answer = await empty_gateway.client.request(method, path, json=body)
    problem(answer, 401, "token_missing")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "token"])
async def test_a_header_without_a_bearer_token(gateway: Gateway, header: str) -> None:
    answer = await gateway.client.post(
        GENERATE, json=request_body(), headers={"Authorization": header}
    )
    problem(answer, 401, "token_missing")


def tampered(value: str) -> str:
    """The same token for another wallet."""
    head, claims, signature = value.split(".")
    decoded = json.loads(base64.urlsafe_b64decode(claims + "=="))
    changed = json.dumps(decoded | {"sub": STRANGER.address.lower()}).encode()
    return f"{head}.{base64.urlsafe_b64encode(changed).decode().rstrip('=')}.{signature}"


FOREVER = {"sub": WALLET, "kind": "user", "exp": 2**40}

WRONG_TOKENS = {
    "garbage": (lambda _: "not.a.token", 401, "token_invalid"),
    "not ASCII": (lambda _: "\xe9\xe8", 401, "token_invalid"),
    "expired": (lambda gateway: token(gateway, exp=1), 401, "token_expired"),
    "tampered": (lambda gateway: tampered(token(gateway)), 401, "token_invalid"),
    "unsigned": (lambda _: jwt.encode(FOREVER, None, "none"), 401, "token_invalid"),
    "other secret": (lambda _: jwt.encode(FOREVER, "s" * 32, "HS256"), 401, "token_invalid"),
    "without expiry": (lambda gateway: token(gateway, exp=None), 401, "token_invalid"),
    "without kind": (lambda gateway: token(gateway, kind=None), 401, "token_invalid"),
    "without subject": (lambda gateway: token(gateway, sub=None), 401, "token_invalid"),
    "a node's": (lambda gateway: token(gateway, kind="node"), 403, "scope_missing"),
}


@pytest.mark.parametrize(("make", "status", "code"), WRONG_TOKENS.values(), ids=WRONG_TOKENS)
async def test_a_token_that_does_not_count(
    gateway: Gateway, make: Callable[[Gateway], str], status: int, code: str
) -> None:
    before = await gateway.books()
    answer = await gateway.client.post(
        GENERATE,
        json=request_body(),
        headers=[(b"Authorization", b"Bearer " + make(gateway).encode("latin-1"))],
    )
    problem(answer, status, code)
    assert await gateway.books() == before


async def test_a_users_token_is_no_nodes(gateway: Gateway) -> None:
    answer = await gateway.client.post("/api/nodes/heartbeat", json=HEARTBEAT)
    problem(answer, 403, "scope_missing")


@pytest.mark.parametrize("secret", ["", "x" * 31])
async def test_the_gateway_does_not_start_with_a_secret_that_can_be_guessed(
    make_settings: Any, secret: str
) -> None:
    settings = make_settings(auth={"jwt_secret": secret})
    with pytest.raises(ValueError, match="FAR_AUTH__JWT_SECRET"):
        async with open_services(settings):
            pass


async def test_models_need_no_login(gateway: Gateway) -> None:
    del gateway.client.headers["Authorization"]
    answer = await gateway.client.get("/api/inference/models")
    assert [model["id"] for model in answer.json()["models"]] == [MODEL_ID]
