"""API keys: made, listed, changed and revoked by their wallet, and what is left of each."""

import datetime as dt
import re
from decimal import Decimal
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update

from market.identity.api_key_text import PATTERN
from market.identity.tables import ApiKey
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    OTHER_WALLET,
    WALLET,
    Gateway,
    problem,
    request_body,
)

KEYS = "/api/keys"
OWN = "/v1/key"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def make(gateway: Gateway, wallet: str = WALLET, **fields: object) -> dict[str, Any]:
    """A new key's answer."""
    body = {"name": "app"} | fields
    answer = await gateway.client.post(KEYS, json=body, headers=gateway.login(wallet))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def listed(gateway: Gateway, wallet: str = WALLET) -> list[dict[str, Any]]:
    answer = await gateway.client.get(KEYS, headers=gateway.login(wallet))
    assert answer.status_code == 200, answer.text
    keys: list[dict[str, Any]] = answer.json()["keys"]
    return keys


async def ask(gateway: Gateway, headers: dict[str, str], **changes: object) -> httpx.Response:
    return await gateway.client.post(
        GENERATE, json=request_body(**changes), headers=ASYNC | headers
    )


async def test_a_key_asks_for_text_and_reads_it(gateway: Gateway) -> None:
    key = await make(gateway)
    assert re.fullmatch(PATTERN, key["key"])
    accepted = await ask(gateway, bearer(key["key"]))
    assert accepted.status_code == 202, accepted.text
    url = accepted.json()["poll_url"]
    assert (await gateway.client.get(url, headers=bearer(key["key"]))).status_code == 200
    # The job is the wallet's.
    assert (await gateway.client.get(url)).status_code == 200


async def test_a_key_is_shown_once_and_stored_nowhere(gateway: Gateway) -> None:
    answer = await gateway.client.post(KEYS, json={"name": "app"})
    assert answer.headers["cache-control"] == "no-store"
    key = answer.json()["key"]
    [shown] = await listed(gateway)
    assert key not in str(shown)
    assert shown["hint"] == f"{key[:15]}...{key[-4:]}"
    async with gateway.sessions() as db:
        stored = (await db.execute(text("SELECT api_keys::text FROM api_keys"))).scalars().all()
    assert len(stored) == 1
    assert key not in stored[0]
    assert key.encode().hex() not in stored[0]


async def test_the_list_has_the_wallets_own_keys_the_newest_first(gateway: Gateway) -> None:
    for name in ("first", "second"):
        await make(gateway, name=name)
    await make(gateway, OTHER_WALLET, name="another's")
    assert [key["name"] for key in await listed(gateway)] == ["second", "first"]


async def test_terms_are_kept_as_given(gateway: Gateway) -> None:
    terms = {
        "name": "Übersetzer",
        "scopes": ["billing", "generate"],
        "models": [MODEL_ID],
        "limit_day_far": "0.000000000000000001",
        "limit_month_far": "12345678901234567890.123456789012345678",
        "generations_per_minute": 60,
        "expires_in": 3600,
    }
    made = await make(gateway, **terms)
    [shown] = await listed(gateway)
    assert made == shown | {"key": made["key"]}
    assert shown["limit_day_far_exact"] == terms["limit_day_far"]
    assert shown["limit_month_far_exact"] == terms["limit_month_far"]
    assert shown["limit_total_far_exact"] is None
    for name in ("name", "scopes", "models", "generations_per_minute"):
        assert shown[name] == terms[name]
    made_at, ends_at = (
        dt.datetime.fromisoformat(shown[name]) for name in ("created_at", "expires_at")
    )
    assert abs(ends_at - made_at - dt.timedelta(hours=1)) < dt.timedelta(minutes=10)


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"name": ""}, 422, "name_empty"),
        ({"name": None}, 422, "name_wrong_type"),
        ({"name": "two\nlines"}, 422, "name_malformed"),
        ({"scopes": []}, 422, "scopes_too_few"),
        ({"scopes": ["keys"]}, 422, "scopes_unknown"),
        ({"scopes": ["machines"]}, 422, "scopes_unknown"),
        ({"models": ["none/such"]}, 404, "model_not_found"),
        ({"limit_day_far": 1.5}, 422, "limit_day_far_wrong_type"),
        ({"limit_total_far": "-1"}, 422, "limit_total_far_malformed"),
        ({"limit_total_far": "0.0000000000000000001"}, 422, "limit_total_far_malformed"),
        ({"generations_per_minute": 0}, 422, "generations_per_minute_out_of_range"),
        ({"expires_in": 0}, 422, "expires_in_out_of_range"),
        ({"wallet_address": OTHER_WALLET}, 422, "unknown_field"),
    ],
)
async def test_what_a_key_cannot_be(
    gateway: Gateway, fields: dict[str, object], status: int, code: str
) -> None:
    answer = await gateway.client.post(KEYS, json={"name": "app"} | fields)
    problem(answer, status, code)
    assert await listed(gateway) == []


async def test_a_key_is_renamed_and_its_limits_changed(gateway: Gateway) -> None:
    key = await make(gateway, limit_day_far="1", limit_total_far="5")
    path = f"{KEYS}/{key['key_id']}"
    changed = await gateway.client.patch(
        path, json={"name": "server", "limit_day_far": "2", "limit_total_far": None}
    )
    assert changed.status_code == 200, changed.text
    [shown] = await listed(gateway)
    assert changed.json() == shown
    assert (shown["name"], shown["limit_day_far_exact"]) == ("server", "2")
    assert shown["limit_total_far_exact"] is None
    unchanged = await gateway.client.patch(path, json={})
    assert unchanged.json() == shown
    problem(await gateway.client.patch(path, json={"scopes": ["billing"]}), 422, "unknown_field")


async def test_another_wallets_key_is_not_there(gateway: Gateway) -> None:
    key = await make(gateway)
    path, stranger = f"{KEYS}/{key['key_id']}", gateway.login(OTHER_WALLET)
    changed = await gateway.client.patch(path, json={"name": "mine"}, headers=stranger)
    problem(changed, 404, "api_key_not_found")
    problem(await gateway.client.delete(path, headers=stranger), 404, "api_key_not_found")
    assert [shown["name"] for shown in await listed(gateway)] == ["app"]
    assert (await gateway.client.get(OWN, headers=bearer(key["key"]))).status_code == 200


async def test_a_revoked_key_is_refused_on_its_next_request(gateway: Gateway) -> None:
    key = await make(gateway)
    assert (await gateway.client.get(OWN, headers=bearer(key["key"]))).status_code == 200
    path = f"{KEYS}/{key['key_id']}"
    assert (await gateway.client.delete(path)).status_code == 204
    problem(await gateway.client.get(OWN, headers=bearer(key["key"])), 401, "api_key_revoked")
    problem(await ask(gateway, bearer(key["key"])), 401, "api_key_revoked")
    problem(await gateway.client.delete(path), 404, "api_key_not_found")
    assert await listed(gateway) == []


async def test_a_key_expires(gateway: Gateway) -> None:
    key = await make(gateway, expires_in=3600)
    async with gateway.sessions.begin() as db:
        await db.execute(update(ApiKey).values(expires_at=dt.datetime.now(dt.UTC)))
    answer = await gateway.client.get(OWN, headers=bearer(key["key"]))
    problem(answer, 401, "api_key_expired")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert [shown["name"] for shown in await listed(gateway)] == ["app"]


async def test_a_wallet_has_no_more_keys_than_it_may(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("market.identity.api_keys.MAX_KEYS", 2)
    keys = [await make(gateway) for _ in range(2)]
    answer = await gateway.client.post(KEYS, json={"name": "one more"})
    problem(answer, 409, "too_many_api_keys")
    assert answer.headers["x-should-retry"] == "false"
    await make(gateway, OTHER_WALLET)
    await gateway.client.delete(f"{KEYS}/{keys[0]['key_id']}")
    await make(gateway)


async def test_what_is_left_of_a_key(gateway: Gateway) -> None:
    limits = {"limit_day_far": "0.5", "limit_month_far": "2", "limit_total_far": "1"}
    key = await make(gateway, **limits, generations_per_minute=30)
    headers = bearer(key["key"])
    job = await ask(gateway, headers)
    hold = Decimal((await gateway.client.get(job.json()["poll_url"])).json()["hold_far_exact"])
    data = (await gateway.client.get(OWN, headers=headers)).json()["data"]
    assert data["label"] == "app"
    assert data["is_free_tier"] is False
    assert data["rate_limit"] == {"requests": 30, "interval": "60s"}
    for used in ("usage", "usage_daily", "usage_monthly"):
        assert Decimal(data[f"{used}_exact"]) == hold
        assert data[used] == float(hold)
    assert Decimal(data["limit_remaining_exact"]) == 1 - hold
    assert Decimal(data["limit_daily_remaining_exact"]) == Decimal("0.5") - hold
    assert Decimal(data["limit_monthly_remaining_exact"]) == 2 - hold
    [shown] = await listed(gateway)
    assert Decimal(shown["spent_total_far_exact"]) == hold


async def test_a_key_without_limits_has_none_left(gateway: Gateway) -> None:
    key = await make(gateway, scopes=["billing"])
    data = (await gateway.client.get(OWN, headers=bearer(key["key"]))).json()["data"]
    assert (data["limit"], data["limit_remaining"], data["usage"]) == (None, None, 0)
    assert data["rate_limit"] == {"requests": 600, "interval": "60s"}


async def test_a_wallet_is_no_key(gateway: Gateway) -> None:
    problem(await gateway.client.get(OWN), 403, "forbidden")


async def test_the_last_use_is_written_once_a_minute(gateway: Gateway) -> None:
    key = await make(gateway)
    assert (await listed(gateway))[0]["last_used_at"] is None
    await gateway.client.get(OWN, headers=bearer(key["key"]))
    first = (await listed(gateway))[0]["last_used_at"]
    assert first is not None
    await gateway.client.get(OWN, headers=bearer(key["key"]))
    assert (await listed(gateway))[0]["last_used_at"] == first
    async with gateway.sessions.begin() as db:
        earlier = dt.datetime.fromisoformat(first) - dt.timedelta(seconds=61)
        await db.execute(update(ApiKey).values(last_used_at=earlier))
    await gateway.client.get(OWN, headers=bearer(key["key"]))
    assert (await listed(gateway))[0]["last_used_at"] >= first
