"""Machines: let in by a wallet (RFC 8628), and sent away again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from eth_account.messages import encode_defunct
from redis.asyncio import Redis
from sqlalchemy import select

from market.identity.device_authorization import DeviceAuthorization
from market.identity.errors import SignatureMismatch, UserCodeUnknown
from market.identity.tables import Machine
from market.identity.tokens import issue_machine_token
from market.nodes import live_lookup
from market.settings import Settings
from mesh import signed_texts
from stack.servers import Postgres
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    LAYERS,
    OTHER_WALLET,
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    Gateway,
    eventually,
    open_gateway,
    problem,
    shared_database,
)

BEGIN = "/api/machines/device"
TOKEN = "/api/machines/token"
MESSAGE = "/api/machines/message"
APPROVE = "/api/machines/approve"
DENY = "/api/machines/deny"

INTERVAL = 0.05
"""Seconds between polls: five in the world."""

AUTH = {
    "jwt_secret": "a secret for the tests, long enough",
    "domain": "mesh.example",
    "device_poll_interval": INTERVAL,
}


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    """One for all: each test looks at its own machines."""
    with shared_database(postgres) as url:
        yield url


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    settings = make_settings(auth=AUTH, public_url="https://mesh.example")
    async with open_gateway(settings) as opened:
        yield opened


async def begin(gateway: Gateway, machine: str = "attic") -> dict[str, Any]:
    answer = await gateway.client.post(BEGIN, json={"machine": machine})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def poll(gateway: Gateway, codes: dict[str, Any]) -> httpx.Response:
    return await gateway.client.post(TOKEN, json={"device_code": codes["device_code"]})


async def message(
    gateway: Gateway, user_code: str, wallet: str = PROVIDER_WALLET
) -> httpx.Response:
    body = {"user_code": user_code, "wallet_address": wallet}
    return await gateway.client.post(MESSAGE, json=body)


async def approve(
    gateway: Gateway, user_code: str, signer: Any = PROVIDER, wallet: str = PROVIDER_WALLET
) -> httpx.Response:
    """What the page does: have the wallet sign, and send that."""
    text = (await message(gateway, user_code, wallet)).json()["message"]
    body = {
        "user_code": user_code,
        "wallet_address": wallet,
        "signature": signed_texts.sign(text, signer.key),
    }
    return await gateway.client.post(APPROVE, json=body)


async def let_in(gateway: Gateway, machine: str = "attic") -> dict[str, Any]:
    """A machine's token."""
    codes = await begin(gateway, machine)
    assert (await approve(gateway, codes["user_code"])).status_code == 200
    answer = await poll(gateway, codes)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def settled(gateway: Gateway, codes: dict[str, Any]) -> httpx.Response:
    """The first answer to a machine that keeps its pace other than "not yet"."""

    async def look() -> httpx.Response | None:
        answer = await poll(gateway, codes)
        return None if answer.json().get("code") in WAITING else answer

    return await eventually(look)


WAITING = ("authorization_pending", "slow_down")


def bearer(token: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {token['access_token']}"}


async def register(gateway: Gateway, token: dict[str, Any], **changes: Any) -> httpx.Response:
    body = {
        "wallet_address": PROVIDER.address,
        "model_id": MODEL_ID,
        "gpu_model": "CPU",
        "vram_gb": 0,
        "public_addr": "0.0.0.0:31330",
        "location": "unknown",
        "start_layer": 0,
        "end_layer": LAYERS,
    } | changes
    path = "/api/nodes/register-distributed"
    return await gateway.client.post(path, json=body, headers=bearer(token))


async def beat(gateway: Gateway, node: dict[str, Any]) -> httpx.Response:
    health = {
        "node_id": node["node_id"],
        "is_healthy": True,
        "latency_ms": 5,
        "throughput_tokens_per_sec": 1,
    }
    headers = {"Authorization": f"Bearer {node['node_token']}"}
    return await gateway.client.post("/api/nodes/heartbeat", json=health, headers=headers)


async def test_a_machine_is_told_what_to_show_and_how_often_to_ask(gateway: Gateway) -> None:
    codes = await begin(gateway)
    user_code = codes["user_code"]
    assert len(user_code.replace("-", "")) == 8
    assert codes["verification_uri"] == "https://mesh.example/link"
    assert codes["verification_uri_complete"] == f"https://mesh.example/link?code={user_code}"
    assert (codes["interval"], codes["expires_in"]) == (INTERVAL, 600)
    refused = problem(await poll(gateway, codes), 400, "authorization_pending")
    assert refused["error"] == "authorization_pending"


async def test_a_wallet_lets_a_machine_in_and_it_registers_for_that_wallet(
    gateway: Gateway,
) -> None:
    token = await let_in(gateway)
    assert token["wallet_address"] == PROVIDER_WALLET
    foreign = await register(gateway, token, wallet_address=STRANGER.address)
    problem(foreign, 401, "signature_mismatch")
    accepted = await register(gateway, token)
    assert accepted.status_code == 200, accepted.text
    async with gateway.sessions() as db:
        machine = await db.get_one(Machine, token["machine_id"])
    assert (machine.name, machine.wallet_address) == ("attic", PROVIDER_WALLET)
    assert machine.last_used_at is not None


async def test_the_message_is_an_eip_4361_message_that_names_machine_and_code(
    gateway: Gateway,
) -> None:
    codes = await begin(gateway, "My PC-2.local")
    answer = (await message(gateway, codes["user_code"])).json()
    lines = answer["message"].split("\n")
    assert lines[0] == "mesh.example wants you to sign in with your Ethereum account:"
    assert lines[1] == PROVIDER.address
    assert "My PC-2.local" in lines[3]
    assert codes["user_code"] in lines[3]
    assert f"Nonce: {answer['nonce']}" in lines
    assert f"Expiration Time: {answer['expires_at']}" in lines


async def test_asking_too_often_slows_a_machine_down(gateway: Gateway) -> None:
    codes = await begin(gateway)
    problem(await poll(gateway, codes), 400, "authorization_pending")
    told = problem(await poll(gateway, codes), 400, "slow_down")
    assert told["detail"] == f"Ask every {INTERVAL + 5:g} seconds."
    await approve(gateway, codes["user_code"])
    problem(await poll(gateway, codes), 400, "slow_down")


async def test_a_code_that_nobody_used_in_time_is_worth_nothing(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    settings = make_settings(auth=AUTH | {"device_code_ttl": 1})
    async with open_gateway(settings) as gateway:
        codes = await begin(gateway)
        answer = await settled(gateway, codes)
        problem(answer, 400, "expired_token")
        problem(await message(gateway, codes["user_code"]), 404, "user_code_unknown")


async def test_a_denied_machine_is_told_so_and_its_code_is_spent(gateway: Gateway) -> None:
    codes = await begin(gateway)
    denied = await gateway.client.post(DENY, json={"user_code": codes["user_code"]})
    assert denied.json() == {"status": "denied", "machine": "attic"}
    problem(await message(gateway, codes["user_code"]), 404, "user_code_unknown")
    problem(await poll(gateway, codes), 400, "access_denied")
    problem(await poll(gateway, codes), 400, "expired_token")


async def test_each_code_works_once(gateway: Gateway) -> None:
    codes = await begin(gateway)
    text = (await message(gateway, codes["user_code"])).json()["message"]
    body = {
        "user_code": codes["user_code"],
        "wallet_address": PROVIDER_WALLET,
        "signature": signed_texts.sign(text, PROVIDER.key),
    }
    answers = await asyncio.gather(*(gateway.client.post(APPROVE, json=body) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 404, 404, 404]
    token = (await poll(gateway, codes)).json()
    problem(await poll(gateway, codes), 400, "expired_token")
    async with gateway.sessions() as db:
        found = (await db.scalars(select(Machine.machine_id))).all()
    assert found.count(token["machine_id"]) == 1
    replayed = await gateway.client.post(APPROVE, json=body)
    problem(replayed, 404, "user_code_unknown")


async def test_only_the_wallets_own_fresh_signature_lets_a_machine_in(gateway: Gateway) -> None:
    codes = await begin(gateway)
    other = await begin(gateway)
    problem(await approve(gateway, codes["user_code"], STRANGER), 401, "signature_mismatch")
    foreign = (await message(gateway, other["user_code"])).json()["message"]
    await message(gateway, codes["user_code"])
    body = {"user_code": codes["user_code"], "wallet_address": PROVIDER_WALLET}
    replayed = body | {"signature": signed_texts.sign(foreign, PROVIDER.key)}
    problem(await gateway.client.post(APPROVE, json=replayed), 401, "signature_mismatch")
    unasked = body | {"wallet_address": OTHER_WALLET, "signature": "0x00"}
    problem(await gateway.client.post(APPROVE, json=unasked), 401, "signature_mismatch")
    assert (await approve(gateway, codes["user_code"])).status_code == 200


async def test_what_was_signed_is_what_counts_whoever_asks_meanwhile(gateway: Gateway) -> None:
    """A stranger signs for himself, and names another wallet before that is written down."""
    codes = await begin(gateway)
    devices = DeviceAuthorization(gateway.redis, gateway.services.settings)
    waiting = await devices.find(codes["user_code"])
    asked = await devices.message_for(waiting, STRANGER.address.lower())
    by_stranger = (waiting, STRANGER.address.lower())
    signature = signed_texts.sign(asked.text, STRANGER.key)
    nonce = await devices.check_signature(*by_stranger, signature)
    await devices.message_for(waiting, PROVIDER_WALLET)
    with pytest.raises(SignatureMismatch, match="newer"):
        await devices.approve(*by_stranger, nonce, "machine_1")

    asked = await devices.message_for(waiting, STRANGER.address.lower())
    nonce = await devices.check_signature(*by_stranger, signed_texts.sign(asked.text, STRANGER.key))
    await devices.approve(*by_stranger, nonce, "machine_1")
    with pytest.raises(UserCodeUnknown):
        await devices.message_for(waiting, PROVIDER_WALLET)
    token = (await poll(gateway, codes)).json()
    assert token["wallet_address"] == STRANGER.address.lower()


async def test_a_machine_speaks_for_the_wallet_that_its_row_names(gateway: Gateway) -> None:
    token = await let_in(gateway)
    forged = issue_machine_token(gateway.services.settings.auth, OTHER_WALLET, token["machine_id"])
    refused = await register(gateway, {"access_token": forged}, wallet_address=OTHER_WALLET)
    assert PROVIDER_WALLET in problem(refused, 401, "signature_mismatch")["detail"]


async def test_a_signature_that_came_too_late(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    async with open_gateway(make_settings(auth=AUTH | {"nonce_ttl": -1})) as gateway:
        codes = await begin(gateway)
        refused = await approve(gateway, codes["user_code"])
        assert "expired" in problem(refused, 401, "signature_mismatch")["detail"]


async def test_the_signature_does_not_log_the_wallet_in(gateway: Gateway) -> None:
    codes = await begin(gateway)
    text = (await message(gateway, codes["user_code"])).json()["message"]
    signature = "0x" + PROVIDER.sign_message(encode_defunct(text=text)).signature.hex()
    body = {"wallet_address": PROVIDER_WALLET, "message": text, "signature": signature}
    problem(await gateway.client.post("/api/auth/login", json=body), 401, "nonce_unknown")


async def test_codes_are_typed_as_people_type_them(gateway: Gateway) -> None:
    codes = await begin(gateway)
    typed = f" {codes['user_code'].replace('-', '').lower()} "
    assert (await message(gateway, typed)).json()["machine"] == "attic"


async def test_redis_holds_no_code(gateway: Gateway) -> None:
    codes = await begin(gateway)
    letters = codes["user_code"].replace("-", "").encode()
    kept = b""
    async for key in gateway.redis.scan_iter("*_code:*"):
        kept += key
        kind = await gateway.redis.type(key)
        if kind == b"hash":
            kept += b"".join((await gateway.redis.hgetall(key)).values())
        else:
            kept += await gateway.redis.get(key)
    assert kept
    assert letters not in kept
    assert codes["device_code"].encode() not in kept


async def test_guessing_codes_ends_soon(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    limits = {"user_codes_per_ip": "3/hour"}
    async with open_gateway(make_settings(auth=AUTH, limits=limits)) as gateway:
        for guess in ("BBBB-BBBB", "CCCC-CCCC", "DDDD-DDDD"):
            problem(await message(gateway, guess), 404, "user_code_unknown")
        codes = await begin(gateway)
        problem(await message(gateway, codes["user_code"]), 429, "rate_limited")
        assert (await gateway.client.get("/link", params={"code": "BBBB-BBBB"})).status_code == 429


@pytest.mark.parametrize("name", ["", "two\nlines", "<b>", 'a"b', "x" * 65, "-attic", "größer"])
async def test_names_that_a_wallet_could_not_show(gateway: Gateway, name: str) -> None:
    answer = await gateway.client.post(BEGIN, json={"machine": name})
    assert answer.status_code == 422


async def test_a_wallet_lists_its_machines_and_nobody_elses(gateway: Gateway) -> None:
    token = await let_in(gateway, "lister")
    mine = await gateway.client.get("/api/machines", headers=gateway.login(PROVIDER_WALLET))
    newest = mine.json()["machines"][0]
    assert (newest["machine_id"], newest["name"]) == (token["machine_id"], "lister")
    assert (newest["last_used_at"], "access_token" in newest) == (None, False)
    others = await gateway.client.get("/api/machines", headers=gateway.login(OTHER_WALLET))
    assert others.json() == {"machines": []}
    problem(await gateway.client.get("/api/machines", headers=bearer(token)), 403, "forbidden")


async def test_a_node_is_seen_by_itself_its_wallet_and_its_wallets_machines(
    gateway: Gateway,
) -> None:
    token = await let_in(gateway)
    node = (await register(gateway, token, node_id="node_Attic")).json()
    namesake = (await register(gateway, await let_in(gateway), node_id="node_attic")).json()
    path = f"/api/nodes/{node['node_id']}"

    async def seen(headers: dict[str, str]) -> int:
        return (await gateway.client.get(path, headers=headers)).status_code

    as_node = {"Authorization": f"Bearer {node['node_token']}"}
    for headers in (as_node, bearer(token), gateway.login(PROVIDER_WALLET)):
        assert await seen(headers) == 200
    as_namesake = {"Authorization": f"Bearer {namesake['node_token']}"}
    for headers in (as_namesake, gateway.login(OTHER_WALLET)):
        assert await seen(headers) == 404
    machine = f"/api/machines/{token['machine_id']}"
    await gateway.client.delete(machine, headers=gateway.login(PROVIDER_WALLET))
    for headers in (as_node, bearer(token)):
        assert await seen(headers) == 401


async def test_a_revoked_machine_can_neither_register_nor_go_on(gateway: Gateway) -> None:
    token = await let_in(gateway)
    node = (await register(gateway, token)).json()
    assert (await beat(gateway, node)).status_code == 200
    path = f"/api/machines/{token['machine_id']}"
    foreign = await gateway.client.delete(path, headers=gateway.login(OTHER_WALLET))
    problem(foreign, 404, "machine_not_found")
    as_node = {"Authorization": f"Bearer {node['node_token']}"}
    problem(await gateway.client.delete(path, headers=as_node), 403, "forbidden")
    revoked = await gateway.client.delete(path, headers=gateway.login(PROVIDER_WALLET))
    assert revoked.status_code == 204
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
    problem(await beat(gateway, node), 404, "node_not_found")
    problem(await register(gateway, token), 401, "machine_revoked")
    listed = await gateway.client.get("/api/machines", headers=gateway.login(PROVIDER_WALLET))
    ids = [machine["machine_id"] for machine in listed.json()["machines"]]
    assert token["machine_id"] not in ids


async def test_a_machine_revokes_itself_and_no_other(gateway: Gateway) -> None:
    token, other = await let_in(gateway), await let_in(gateway)
    foreign = await gateway.client.delete(
        f"/api/machines/{other['machine_id']}", headers=bearer(token)
    )
    problem(foreign, 403, "forbidden")
    own = f"/api/machines/{token['machine_id']}"
    assert (await gateway.client.delete(own, headers=bearer(token))).status_code == 204
    problem(await gateway.client.delete(own, headers=bearer(token)), 404, "machine_not_found")
    assert (await register(gateway, other)).status_code == 200


async def test_the_page_shows_the_machine_and_runs_nobody_elses_script(gateway: Gateway) -> None:
    codes = await begin(gateway, "attic 2")
    page = await gateway.client.get("/link", params={"code": codes["user_code"]})
    assert page.status_code == 200
    assert "attic 2" in page.text
    assert codes["user_code"] in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert (await gateway.client.get("/static/link.js")).status_code == 200
    empty = await gateway.client.get("/link")
    assert (empty.status_code, "Continue" in empty.text) == (200, True)
    evil = await gateway.client.get("/link", params={"code": "<script>x"})
    assert (evil.status_code, "<script>x" in evil.text) == (404, False)


async def test_probes_carry_what_was_asked_for_and_no_more(gateway: Gateway) -> None:
    probe = "/api/discovery/probe"
    assert (await gateway.client.get(probe)).content == b""
    assert len((await gateway.client.get(probe, params={"bytes": 100_000})).content) == 100_000
    too_many = await gateway.client.get(probe, params={"bytes": 2**30})
    assert too_many.status_code == 422
    sent = await gateway.client.post(probe, content=bytes(70_000))
    assert sent.json() == {"bytes": 70_000}
    problem(await gateway.client.post(probe, content=bytes(2**21)), 413, "body_too_large")


async def test_a_models_shape(gateway: Gateway) -> None:
    shape = (await gateway.client.get(f"/api/discovery/config/{MODEL_ID}")).json()
    assert (shape["model_type"], shape["num_hidden_layers"]) == ("llama", LAYERS)
    problem(await gateway.client.get("/api/discovery/config/none"), 404, "model_not_found")
