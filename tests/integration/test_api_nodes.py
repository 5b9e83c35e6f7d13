"""Nodes: registration by a wallet's signature, and heartbeats."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select

from mesh import names, proof, registry
from mesh.db import NodeRegistry
from mesh.settings import Settings
from stack.servers import Postgres
from tests.conftest import MODEL_ID
from tests.integration.api_support import (
    GENERATE,
    LAYERS,
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    WALLET,
    Gateway,
    open_gateway,
    problem,
    request_body,
    shared_database,
)

REGISTER = "/api/nodes/register-distributed"
HEARTBEAT = "/api/nodes/heartbeat"
TTL = 77


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    """One for all: each test looks at its own nodes."""
    with shared_database(postgres) as url:
        yield url


@pytest.fixture
async def gateway(make_settings: Callable[..., Settings], redis: Redis) -> AsyncIterator[Gateway]:
    """A gateway whose operator trusts the provider with the edge, and without any node yet."""
    discovery = {
        "trusted_wallets": [PROVIDER.address],
        "node_ttl": TTL,
        "health_check_interval": 12,
    }
    async with open_gateway(
        make_settings(discovery=discovery, public_url="https://mesh.example")
    ) as opened:
        yield opened


async def registration(gateway: Gateway, signer: Any = PROVIDER, **changes: Any) -> dict[str, Any]:
    """A registration's body, signed over what it says; ``changes`` may leave a field out (None)."""
    nonce = (await gateway.client.get("/api/auth/nonce")).json()["nonce"]
    values: dict[str, Any] = {
        "wallet_address": PROVIDER.address,
        "model_id": MODEL_ID,
        "gpu_model": "NVIDIA RTX 4090",
        "vram_gb": 24,
        "public_addr": "192.0.2.1:31330",
        "location": "US-East",
        "start_layer": 0,
        "end_layer": LAYERS,
        "edge": True,
        "nonce": nonce,
    } | changes
    message = proof.registration_message(
        wallet_address=values["wallet_address"],
        model_id=values["model_id"],
        start_layer=values["start_layer"],
        end_layer=values["end_layer"] or LAYERS,
        edge=values["edge"],
        nonce=values["nonce"],
    )
    values["signature"] = changes.get("signature", proof.sign(message, signer.key))
    return {name: value for name, value in values.items() if value is not None}


async def register(gateway: Gateway, **changes: Any) -> httpx.Response:
    return await gateway.client.post(REGISTER, json=await registration(gateway, **changes))


async def registered(gateway: Gateway, **changes: Any) -> tuple[str, dict[str, str]]:
    """A new node's id, and the headers it authenticates with."""
    answer = await register(gateway, **changes)
    assert answer.status_code == 200, answer.text
    node = answer.json()
    return node["node_id"], {"Authorization": f"Bearer {node['node_token']}"}


async def beat(
    gateway: Gateway, node_id: str, token: dict[str, str], **changes: Any
) -> httpx.Response:
    health = {
        "node_id": node_id,
        "is_healthy": True,
        "latency_ms": 45,
        "throughput_tokens_per_sec": 12,
        "current_requests": 3,
        "kv_positions": 4096,
    }
    return await gateway.client.post(HEARTBEAT, json=health | changes, headers=token)


async def known(gateway: Gateway) -> int:
    async with gateway.sessions() as db:
        return await db.scalar(select(func.count()).select_from(NodeRegistry)) or 0


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
    }
    async with gateway.sessions() as db:
        row = await db.get_one(NodeRegistry, node_id)
    assert (row.wallet_address, row.model_id) == (PROVIDER_WALLET, MODEL_ID)
    assert (row.gpu_model, row.vram_gb, row.location) == ("NVIDIA RTX 4090", 24, "US-East")
    assert (row.start_layer, row.end_layer, row.edge) == (2, 4, False)
    assert await registry.active(gateway.redis, MODEL_ID) == []


async def test_only_a_machine_that_was_let_in_registers_without_a_signature(
    gateway: Gateway,
) -> None:
    body = await registration(gateway)
    del body["signature"], body["nonce"]
    nobody = await gateway.client.post(REGISTER, json=body, headers={"Authorization": ""})
    problem(nobody, 401, "signature_mismatch")
    user = await gateway.client.post(REGISTER, json=body, headers=gateway.login(PROVIDER.address))
    problem(user, 403, "forbidden")
    unknown = gateway.login(PROVIDER.address, "machine")
    problem(await gateway.client.post(REGISTER, json=body, headers=unknown), 401, "machine_revoked")


async def test_without_a_span_a_node_serves_the_whole_model(gateway: Gateway) -> None:
    body = await registration(gateway, end_layer=None)
    del body["start_layer"]
    answer = await gateway.client.post(REGISTER, json=body)
    assert answer.json()["layers_served"] == list(range(LAYERS))


@pytest.mark.parametrize(
    "address",
    ["[2001:db8::1]:31330", "[::ffff:192.0.2.1]:1", "node-7.example.com:65535", "localhost:80"],
)
async def test_addresses_of_other_kinds(gateway: Gateway, address: str) -> None:
    node_id, _ = await registered(gateway, public_addr=address)
    async with gateway.sessions() as db:
        assert (await db.get_one(NodeRegistry, node_id)).public_addr == address


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
    before = await known(gateway)
    problem(await register(gateway, **changes), status, code)
    assert await known(gateway) == before


async def test_a_registration_works_once(gateway: Gateway) -> None:
    before = await known(gateway)
    body = await registration(gateway)
    assert (await gateway.client.post(REGISTER, json=body)).status_code == 200
    problem(await gateway.client.post(REGISTER, json=body), 401, "nonce_unknown")
    assert await known(gateway) == before + 1


@pytest.mark.parametrize(
    "change", [{"start_layer": 1}, {"end_layer": 5}, {"edge": False}], ids=["start", "end", "edge"]
)
async def test_what_was_signed_is_what_is_registered(
    gateway: Gateway, change: dict[str, object]
) -> None:
    body = await registration(gateway) | change
    problem(await gateway.client.post(REGISTER, json=body), 401, "signature_mismatch")


async def test_a_heartbeat_puts_a_node_on_the_routes(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)
    answer = await beat(gateway, node_id, token)
    assert answer.json() == {"status": "ok", "should_rebalance": False}
    [node] = await registry.active(gateway.redis, MODEL_ID)
    assert (node.node_id, node.wallet_address, node.trusted) == (node_id, PROVIDER_WALLET, True)
    assert (node.start_layer, node.end_layer, node.edge) == (0, LAYERS, True)
    assert (node.latency_ms, node.throughput_tokens_per_sec, node.current_requests) == (45, 12, 3)
    assert node.kv_positions == 4096
    left = await gateway.redis.ttl(names.node(node_id))
    assert TTL - 10 < left <= TTL
    await gateway.deposit("1")
    accepted = await gateway.client.post(
        GENERATE, json=request_body(), headers={"Prefer": "respond-async"}
    )
    assert accepted.status_code == 202


async def test_a_node_of_a_stranger_is_not_trusted(gateway: Gateway) -> None:
    node_id, token = await registered(gateway, wallet_address=STRANGER.address, signer=STRANGER)
    await beat(gateway, node_id, token)
    [node] = await registry.active(gateway.redis, MODEL_ID)
    assert not node.trusted


async def test_an_unhealthy_node_is_off_the_routes_until_it_is_well(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)
    seen = []
    for healthy in (True, False, True):
        assert (await beat(gateway, node_id, token, is_healthy=healthy)).status_code == 200
        async with gateway.sessions() as db:
            row = await db.get_one(NodeRegistry, node_id)
        active = await registry.active(gateway.redis, MODEL_ID)
        seen.append((len(active), row.is_active, row.last_seen is not None))
    assert seen == [(1, True, True), (0, False, True), (1, True, True)]


async def test_time_between_heartbeats_counts_as_uptime(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)

    async def uptime() -> float:
        async with gateway.sessions() as db:
            return (await db.get_one(NodeRegistry, node_id)).uptime_seconds

    await beat(gateway, node_id, token)
    assert await uptime() == 0
    await beat(gateway, node_id, token)
    first = await uptime()
    assert 0 < first < TTL
    async with gateway.sessions.begin() as db:  # silent for longer than its time to live
        row = await db.get_one(NodeRegistry, node_id)
        row.last_seen = row.registered_at.replace(year=2020)
    await beat(gateway, node_id, token)
    assert await uptime() == first


async def test_a_node_speaks_for_itself_only(gateway: Gateway) -> None:
    node_id, _ = await registered(gateway)
    _, other_token = await registered(gateway)
    problem(await beat(gateway, node_id, other_token), 403, "forbidden")
    problem(await beat(gateway, node_id, gateway.login(WALLET)), 403, "forbidden")
    problem(await beat(gateway, node_id, {"Authorization": ""}), 401, "token_missing")
    assert await registry.active(gateway.redis, MODEL_ID) == []


async def test_a_node_that_was_never_registered(gateway: Gateway) -> None:
    token = gateway.login("node_lost", kind="node")
    answer = await beat(gateway, "node_lost", token)
    assert "Register again" in problem(answer, 404, "node_not_found")["detail"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latency_ms", -1),
        ("latency_ms", 1e300),
        ("throughput_tokens_per_sec", -1),
        ("throughput_tokens_per_sec", 1e300),
        ("current_requests", -1),
        ("current_requests", 10**400),
        ("kv_positions", -1),
        ("kv_positions", 10**400),
        ("gpu_utilization_percent", 101),
        ("vram_used_gb", 1e300),
    ],
)
async def test_a_figure_that_would_break_the_routes(
    gateway: Gateway, field: str, value: float
) -> None:
    node_id, token = await registered(gateway)
    problem(await beat(gateway, node_id, token, **{field: value}), 422, f"{field}_out_of_range")
    assert await registry.active(gateway.redis, MODEL_ID) == []
