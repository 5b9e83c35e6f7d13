"""Machines let in by a wallet (RFC 8628)."""

import asyncio
from collections.abc import Callable

import pytest
from eth_account.messages import encode_defunct
from redis.asyncio import Redis
from sqlalchemy import select

from market.identity.device_authorization import DeviceAuthorization
from market.identity.errors import SignatureMismatch, UserCodeUnknown
from market.identity.tables import Machine
from market.identity.tokens import issue_machine_token
from market.settings import Settings
from mesh import signed_texts
from tests.support.gateway.api import (
    OTHER_WALLET,
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    Gateway,
    open_gateway,
    problem,
)
from tests.support.gateway.machine_api import (
    APPROVE,
    AUTH,
    BEGIN,
    DENY,
    INTERVAL,
    approve,
    begin,
    decided,
    let_in,
    message,
    poll,
    register,
)


async def test_a_machine_gets_a_code_to_show_and_how_often_to_poll(gateway: Gateway) -> None:
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


async def test_asking_too_often_slows_a_machine_down(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    settings = make_settings(auth=AUTH | {"device_poll_interval": 30})
    async with open_gateway(settings) as gateway:
        codes = await begin(gateway)
        problem(await poll(gateway, codes), 400, "authorization_pending")
        refused = problem(await poll(gateway, codes), 400, "slow_down")
        assert refused["detail"] == "Ask every 35 seconds."
        await approve(gateway, codes["user_code"])
        problem(await poll(gateway, codes), 400, "slow_down")


async def test_a_code_that_nobody_used_in_time_is_worth_nothing(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    settings = make_settings(auth=AUTH | {"device_code_ttl": 1})
    async with open_gateway(settings) as gateway:
        codes = await begin(gateway)
        answer = await decided(gateway, codes)
        problem(answer, 400, "expired_token")
        problem(await message(gateway, codes["user_code"]), 404, "user_code_unknown")


async def test_a_denied_machine_gets_access_denied_and_its_code_is_spent(gateway: Gateway) -> None:
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
    pending = await devices.find(codes["user_code"])
    asked = await devices.issue_message(pending, STRANGER.address.lower())
    by_stranger = (pending, STRANGER.address.lower())
    signature = signed_texts.sign(asked.text, STRANGER.key)
    nonce = await devices.check_signature(*by_stranger, signature)
    await devices.issue_message(pending, PROVIDER_WALLET)
    with pytest.raises(SignatureMismatch, match="newer"):
        await devices.approve(*by_stranger, nonce, "machine_1")

    asked = await devices.issue_message(pending, STRANGER.address.lower())
    nonce = await devices.check_signature(*by_stranger, signed_texts.sign(asked.text, STRANGER.key))
    await devices.approve(*by_stranger, nonce, "machine_1")
    with pytest.raises(UserCodeUnknown):
        await devices.issue_message(pending, PROVIDER_WALLET)
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
    async with open_gateway(make_settings(auth=AUTH | {"nonce_ttl": -60})) as gateway:
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
