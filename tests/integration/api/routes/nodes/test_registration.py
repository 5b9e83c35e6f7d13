"""Registration: signed by a wallet, for a span of a model."""

import datetime as dt
from typing import Any

import pytest

from market.nodes import live_lookup
from market.nodes.tables import RegisteredNode
from mesh import signed_texts
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    LAYERS,
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    Gateway,
    problem,
)
from tests.support.gateway.node_api import (
    REGISTRATION_PATH,
    node_count,
    register,
    registered,
    registration,
)
from tests.support.gateway.signing import challenge


async def test_a_node_registers(gateway: Gateway) -> None:
    answer = await register(gateway, start_layer=2, end_layer=4, edge=False)
    assert answer.status_code == 200, answer.text
    node = answer.json()
    assert node.pop("node_token")
    node_id = node.pop("node_id")
    assert node == {
        "status": "registered",
        "discovery_url": "https://mesh.example",
        "heartbeat_interval_sec": 12,
        "layers_served": [2, 3],
        "edge": False,
    }
    async with gateway.sessions() as db:
        row = await db.get_one(RegisteredNode, node_id)
    assert (row.wallet_address, row.model_id) == (PROVIDER_WALLET, MODEL_ID)
    assert (row.gpu_model, row.vram_gb, row.location) == ("NVIDIA RTX 4090", 24, "US-East")
    assert (row.start_layer, row.end_layer, row.edge) == (2, 4, False)
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []


async def test_only_a_machine_that_was_let_in_registers_without_a_signature(
    gateway: Gateway,
) -> None:
    body = await registration(gateway)
    del body["signature"], body["nonce"], body["expires_at"]
    nobody = await gateway.client.post(REGISTRATION_PATH, json=body, headers={"Authorization": ""})
    problem(nobody, 401, "signature_mismatch")
    user = await gateway.client.post(
        REGISTRATION_PATH, json=body, headers=gateway.login(PROVIDER.address)
    )
    problem(user, 403, "scope_missing")
    unknown = gateway.machine_login(PROVIDER.address, "machine_unknown")
    problem(
        await gateway.client.post(REGISTRATION_PATH, json=body, headers=unknown),
        401,
        "machine_revoked",
    )


async def test_without_a_span_a_node_serves_the_whole_model(gateway: Gateway) -> None:
    body = await registration(gateway, end_layer=None)
    del body["start_layer"]
    answer = await gateway.client.post(REGISTRATION_PATH, json=body)
    assert answer.json()["layers_served"] == list(range(LAYERS))


@pytest.mark.parametrize(
    "address",
    ["[2001:db8::1]:31330", "[::ffff:192.0.2.1]:1", "node-7.example.com:65535", "localhost:80"],
)
async def test_addresses_of_other_kinds(gateway: Gateway, address: str) -> None:
    node_id, _ = await registered(gateway, public_addr=address)
    async with gateway.sessions() as db:
        assert (await db.get_one(RegisteredNode, node_id)).public_addr == address


REFUSED = {
    "empty span": ({"start_layer": 3, "end_layer": 3}, 422, "end_layer_out_of_range"),
    "reversed span": ({"start_layer": 4, "end_layer": 2}, 422, "end_layer_out_of_range"),
    "span beyond the model": ({"end_layer": 7}, 422, "end_layer_out_of_range"),
    "start beyond the model": (
        {"start_layer": 6, "end_layer": None},
        422,
        "end_layer_out_of_range",
    ),
    "negative start": ({"start_layer": -1}, 422, "start_layer_out_of_range"),
    "unknown model": ({"model_id": "far/other"}, 404, "model_not_found"),
    "signed by another wallet": ({"signer": STRANGER}, 401, "signature_mismatch"),
    "no signature": ({"signature": "0x"}, 401, "signature_mismatch"),
    "nonce that is not ours": ({"nonce": "f" * 32}, 401, "nonce_unknown"),
    "signed for another platform": ({"platform": "other"}, 401, "signature_mismatch"),
    "expired": ({"expires_at": "2020-01-31T12:00:00Z"}, 401, "signature_expired"),
    "good for ever": ({"expires_at": "2120-01-31T12:00:00Z"}, 401, "signature_expired"),
    "expiry that is no time": ({"expires_at": "tomorrow"}, 401, "signature_expired"),
    "expiry that is not ours": ({"expires_at": "2035-01-31 12:00:00Z"}, 401, "signature_expired"),
    "long nonce": ({"nonce": "f" * 65}, 422, "nonce_too_long"),
    "malformed wallet": ({"wallet_address": "0x12"}, 422, "wallet_address_malformed"),
    "negative memory": ({"vram_gb": -1}, 422, "vram_gb_out_of_range"),
    "long GPU name": ({"gpu_model": "x" * 101}, 422, "gpu_model_too_long"),
    "NUL in the GPU name": ({"gpu_model": "RTX\x00"}, 422, "gpu_model_malformed"),
    "line break in the location": ({"location": "US\nEast"}, 422, "location_malformed"),
    "unknown field": ({"port": 1}, 422, "unknown_field"),
    **{
        f"address {address!r}": ({"public_addr": address}, 422, "public_addr_malformed")
        for address in (
            "",
            "192.0.2.1",
            "192.0.2.1:",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "192.0.2.1:\u0663\u0663",
            "192.0.2.1:31330\n",
            ":31330",
            "a b:31330",
            "-x:1",
            "a..b:1",
            "2001:db8::1:31330",
            "[2001:db8::1]",
            "[2001:db8::g]:1",
            "[fe80::1%eth0]:1",
            "http://192.0.2.1:31330",
        )
    },
}


@pytest.mark.parametrize(("changes", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_a_registration_that_is_refused(
    gateway: Gateway, changes: dict[str, Any], status: int, code: str
) -> None:
    before = await node_count(gateway)
    problem(await register(gateway, **changes), status, code)
    assert await node_count(gateway) == before


async def test_a_registration_works_once(gateway: Gateway) -> None:
    before = await node_count(gateway)
    body = await registration(gateway)
    assert (await gateway.client.post(REGISTRATION_PATH, json=body)).status_code == 200
    problem(await gateway.client.post(REGISTRATION_PATH, json=body), 401, "nonce_unknown")
    assert await node_count(gateway) == before + 1


@pytest.mark.parametrize(
    ("seconds", "status"),
    [(-5, 200), (-60, 401), (300 + 5, 200), (300 + 60, 401)],
    ids=["clock ahead", "expired", "clock behind", "too long"],
)
async def test_a_clock_may_be_some_seconds_off(
    gateway: Gateway, seconds: float, status: int
) -> None:
    signed = await challenge(gateway.client, seconds=seconds)
    answer = await register(gateway, expires_at=signed["expires_at"])
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "change",
    [
        {"start_layer": 1},
        {"end_layer": 5},
        {"edge": False},
        {"expires_at": "now"},
    ],
    ids=["start", "end", "edge", "expiry"],
)
async def test_what_was_signed_is_what_is_registered(
    gateway: Gateway, change: dict[str, object]
) -> None:
    body = await registration(gateway) | change
    if body["expires_at"] == "now":
        body["expires_at"] = signed_texts.format_instant(dt.datetime.now(dt.UTC))
    problem(await gateway.client.post(REGISTRATION_PATH, json=body), 401, "signature_mismatch")


async def test_layers_may_be_listed(gateway: Gateway) -> None:
    body = await registration(gateway, start_layer=2, end_layer=4, edge=False)
    del body["start_layer"], body["end_layer"]
    answer = await gateway.client.post(REGISTRATION_PATH, json=body | {"layers_served": [2, 3]})
    assert answer.json()["layers_served"] == [2, 3]
    body = await registration(gateway)
    answer = await gateway.client.post(REGISTRATION_PATH, json=body | {"layers_served": []})
    assert answer.json()["layers_served"] == list(range(LAYERS))


@pytest.mark.parametrize(
    ("layers", "code"),
    [
        ([1, 3], "layers_served_malformed"),
        ([2, 1], "layers_served_malformed"),
        ([0, 0], "layers_served_malformed"),
        ([0, 1], "layers_served_mismatch"),
        ([-1, 0], "layers_served_mismatch"),
        ([0] * 1025, "layers_served_too_many"),
    ],
)
async def test_listed_layers_that_are_no_span(
    gateway: Gateway, layers: list[int], code: str
) -> None:
    problem(await register(gateway, layers_served=layers), 422, code)


async def test_listed_layers_beyond_the_model(gateway: Gateway) -> None:
    body = await registration(gateway, layers_served=[LAYERS])
    del body["start_layer"], body["end_layer"]
    answer = await gateway.client.post(REGISTRATION_PATH, json=body)
    problem(answer, 422, "layers_served_out_of_range")
