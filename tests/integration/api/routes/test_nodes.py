"""Nodes: registration by a wallet's signature, and heartbeats."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from redis.asyncio import Redis
from sqlalchemy import func, select

from market.geo.geoip import GeoIp
from market.nodes import live_lookup, live_registry
from market.nodes.tables import RegisteredNode
from market.settings import Settings
from mesh import redis_keys, signed_texts
from stack.servers import Postgres
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    GENERATE,
    LAYERS,
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    WALLET,
    Gateway,
    Job,
    eventually,
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
    message = signed_texts.registration_message(
        wallet_address=values["wallet_address"],
        model_id=values["model_id"],
        start_layer=values["start_layer"],
        end_layer=values["end_layer"] or LAYERS,
        edge=values["edge"],
        nonce=values["nonce"],
    )
    values["signature"] = changes.get("signature", signed_texts.sign(message, signer.key))
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
        return await db.scalar(select(func.count()).select_from(RegisteredNode)) or 0


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
    del body["signature"], body["nonce"]
    nobody = await gateway.client.post(REGISTER, json=body, headers={"Authorization": ""})
    problem(nobody, 401, "signature_mismatch")
    user = await gateway.client.post(REGISTER, json=body, headers=gateway.login(PROVIDER.address))
    problem(user, 403, "forbidden")
    unknown = gateway.machine_login(PROVIDER.address, "machine_unknown")
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
    assert answer.json() == {
        "status": "ok",
        "should_rebalance": False,
        "start_layer": 0,
        "end_layer": LAYERS,
    }
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert (node.node_id, node.wallet_address, node.trusted) == (node_id, PROVIDER_WALLET, True)
    assert (node.start_layer, node.end_layer, node.edge) == (0, LAYERS, True)
    assert (node.latency_ms, node.throughput_tokens_per_sec, node.current_requests) == (45, 12, 3)
    assert node.kv_positions == 4096
    left = await gateway.redis.ttl(redis_keys.node(node_id))
    assert TTL - 10 < left <= TTL
    await gateway.deposit("1")
    accepted = await gateway.client.post(
        GENERATE, json=request_body(), headers={"Prefer": "respond-async"}
    )
    assert accepted.status_code == 202


async def test_a_node_of_a_stranger_is_not_trusted(gateway: Gateway) -> None:
    node_id, token = await registered(gateway, wallet_address=STRANGER.address, signer=STRANGER)
    await beat(gateway, node_id, token)
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert not node.trusted


async def test_an_unhealthy_node_is_off_the_routes_until_it_is_well(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)
    seen = []
    for healthy in (True, False, True):
        assert (await beat(gateway, node_id, token, is_healthy=healthy)).status_code == 200
        async with gateway.sessions() as db:
            row = await db.get_one(RegisteredNode, node_id)
        active = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
        seen.append((len(active), row.is_active, row.last_seen is not None))
    assert seen == [(1, True, True), (0, False, True), (1, True, True)]


async def row_of(gateway: Gateway, node_id: str) -> RegisteredNode:
    async with gateway.sessions() as db:
        return await db.get_one(RegisteredNode, node_id)


async def test_time_between_heartbeats_counts_as_uptime(gateway: Gateway) -> None:
    """Gathered in Redis, written when the node leaves; what lies before a silence counts, too."""
    node_id, token = await registered(gateway)
    await beat(gateway, node_id, token)

    async def heard() -> bool:
        await beat(gateway, node_id, token)
        return await live_registry.unsaved_uptime(gateway.redis, node_id) > 0

    await eventually(heard)
    gathered = await live_registry.unsaved_uptime(gateway.redis, node_id)
    assert 0 < gathered < TTL
    assert (await row_of(gateway, node_id)).uptime_seconds == 0
    await gateway.redis.delete(redis_keys.node(node_id))  # silent for longer than its time to live
    await beat(gateway, node_id, token)
    assert (await row_of(gateway, node_id)).uptime_seconds == pytest.approx(gathered)
    assert await live_registry.unsaved_uptime(gateway.redis, node_id) == pytest.approx(0, abs=1e-9)
    await beat(gateway, node_id, token, is_healthy=False)
    row = await row_of(gateway, node_id)
    assert gathered <= row.uptime_seconds < TTL
    assert not row.is_active


async def test_a_heartbeat_asks_postgres_now_and_then(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    """Steady beats write no row until the interval is over; with none, each does."""
    for interval, writes in ((3600, 0), (0, 3)):
        discovery = {"row_interval": interval}
        async with open_gateway(make_settings(discovery=discovery)) as gateway:
            node_id, token = await registered(gateway)
            await beat(gateway, node_id, token)
            seen = [(await row_of(gateway, node_id)).last_seen]
            for _ in range(3):
                assert (await beat(gateway, node_id, token)).status_code == 200
                seen.append((await row_of(gateway, node_id)).last_seen)
            assert len(set(seen)) - 1 == writes


async def test_a_node_whose_row_was_deleted_is_off_within_the_interval(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    async with open_gateway(make_settings(discovery={"row_interval": 0})) as gateway:
        node_id, token = await registered(gateway)
        await beat(gateway, node_id, token)
        async with gateway.sessions.begin() as db:
            await db.delete(await db.get_one(RegisteredNode, node_id))
        problem(await beat(gateway, node_id, token), 404, "node_not_found")
        assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []


async def test_trust_that_was_withdrawn_counts_from_the_next_heartbeat(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)
    await beat(gateway, node_id, token)
    gateway.services.settings.discovery.trusted_wallets = []
    await beat(gateway, node_id, token)
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert not node.trusted


MEASURED = {
    "hop_ms": 17.5,
    "load_bytes_per_second": 2e8,
    "gpu_utilization_percent": 63,
    "vram_used_gb": 20.5,
}


async def test_what_placement_and_routes_want_to_know(gateway: Gateway) -> None:
    """What a node says once, what it measures, and what has changed since it registered."""
    said = {"quantization": "int8", "memory_bytes": 24 * 10**9, "max_sessions": 4}
    node_id, token = await registered(gateway, min_price="0.000123456789012345", **said)
    await beat(gateway, node_id, token, **MEASURED)
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert {name: getattr(node, name) for name in said} == said
    assert {name: getattr(node, name) for name in MEASURED} == MEASURED
    assert node.min_price == Decimal("0.000123456789012345")
    await beat(gateway, node_id, token, memory_bytes=10**9)
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert (node.memory_bytes, node.quantization, node.hop_ms) == (10**9, "int8", 0)


@pytest.fixture
def device() -> dict[str, Any]:
    """One that no other test has registered."""
    return {"device_id": secrets.token_hex(16), "gpu_index": 1}


async def test_a_device_that_registers_again_is_the_same_node(
    gateway: Gateway, device: dict[str, Any]
) -> None:
    """A restart: one row, one entry, with what the new process says; the old process is over."""
    before = await known(gateway)
    node_id, old = await registered(gateway, **device)
    await beat(gateway, node_id, old)
    again, new = await registered(gateway, start_layer=2, edge=False, **device)
    assert again == node_id
    assert await known(gateway) == before + 1
    assert (
        await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
    )  # until the new process beats
    await beat(gateway, node_id, new)
    for healthy in (True, False):
        late = await beat(gateway, node_id, old, is_healthy=healthy)
        problem(late, 409, "node_superseded")
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert (node.node_id, node.start_layer, node.registration) == (node_id, 2, 2)
    row = await row_of(gateway, node_id)
    assert (row.start_layer, row.registration, row.is_active) == (2, 2, True)


async def test_a_late_heartbeat_of_an_earlier_process_brings_nothing_back(
    gateway: Gateway, device: dict[str, Any]
) -> None:
    """Also before the new process has beaten for the first time."""
    node_id, old = await registered(gateway, **device)
    _, new = await registered(gateway, **device)
    problem(await beat(gateway, node_id, old), 409, "node_superseded")
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
    assert (await beat(gateway, node_id, new)).status_code == 200


async def test_a_device_of_another_wallet_or_gpu_is_another_node(
    gateway: Gateway, device: dict[str, Any]
) -> None:
    names = [
        (await registered(gateway, **device))[0],
        (await registered(gateway, **device | {"gpu_index": 2}))[0],
        (await registered(gateway, wallet_address=STRANGER.address, signer=STRANGER, **device))[0],
    ]
    assert len(set(names)) == 3


async def test_two_processes_that_race_for_a_device_end_in_one_entry(gateway: Gateway) -> None:
    before = await known(gateway)
    bodies = [await registration(gateway, device_id="racing") for _ in range(6)]
    answers = await asyncio.gather(*(gateway.client.post(REGISTER, json=body) for body in bodies))
    assert {answer.status_code for answer in answers} == {200}
    nodes = [answer.json() for answer in answers]
    [node_id] = {node["node_id"] for node in nodes}
    tokens = [{"Authorization": f"Bearer {node['node_token']}"} for node in nodes]
    beats = await asyncio.gather(
        *(beat(gateway, node_id, token) for _ in range(3) for token in tokens)
    )
    assert sorted(answer.status_code for answer in beats) == [200] * 3 + [409] * 15
    assert await known(gateway) == before + 1
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert node.registration == 6


async def test_a_node_without_a_device_is_a_new_one_each_time(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    """The specification's body as it stands: the ghost is gone after its time to live."""
    discovery = {"node_ttl": 0.5}
    async with open_gateway(make_settings(discovery=discovery)) as gateway:
        ghost, token = await registered(gateway)
        await beat(gateway, ghost, token)
        node_id, token = await registered(gateway)
        assert node_id != ghost

        async def alone() -> bool:
            await beat(gateway, node_id, token)
            nodes = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
            return [node.node_id for node in nodes] == [node_id]

        await eventually(alone)


async def test_a_node_may_say_what_it_is_called(gateway: Gateway) -> None:
    """The specification's discovery body: who comes again under a name is the same node."""
    name = f"{PROVIDER.address[:8]}-0"
    before = await known(gateway)
    assert [(await registered(gateway, node_id=name))[0] for _ in range(2)] == [name, name]
    assert await known(gateway) == before + 1
    stolen = await register(gateway, node_id=name, wallet_address=STRANGER.address, signer=STRANGER)
    problem(stolen, 409, "node_id_taken")
    assert (await row_of(gateway, name)).wallet_address == PROVIDER_WALLET


async def test_a_device_keeps_its_name_whatever_it_would_like(gateway: Gateway) -> None:
    node_id, _ = await registered(gateway, device_id="named")
    again, _ = await registered(gateway, device_id="named", node_id="fancy")
    assert again == node_id


async def test_layers_may_be_listed(gateway: Gateway) -> None:
    body = await registration(gateway, start_layer=2, end_layer=4, edge=False)
    del body["start_layer"], body["end_layer"]
    answer = await gateway.client.post(REGISTER, json=body | {"layers_served": [2, 3]})
    assert answer.json()["layers_served"] == [2, 3]
    body = await registration(gateway)
    answer = await gateway.client.post(REGISTER, json=body | {"layers_served": []})
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
    answer = await gateway.client.post(REGISTER, json=body)
    problem(answer, 422, "layers_served_out_of_range")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that knows where 203.0.113.0/24 is, and nothing else."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoLite2-City")
    berlin = {
        "city": {"names": {"en": "Berlin"}},
        "country": {"iso_code": "DE", "names": {"en": "Germany"}},
        "location": {"latitude": 52.52, "longitude": 13.405},
    }
    writer.insert_network(IPSet(["203.0.113.0/24"]), berlin)
    file = tmp_path_factory.mktemp("places") / "cities.mmdb"
    writer.to_db_file(str(file))
    return file


@pytest.fixture
async def located(
    make_settings: Callable[..., Settings], redis: Redis, places: Path
) -> AsyncIterator[Gateway]:
    settings = make_settings(
        discovery={"geoip_database": str(places), "trusted_wallets": [PROVIDER.address]},
        limits={"trust_forwarded_for": True},
    )
    async with open_gateway(settings) as opened:
        yield opened


BERLIN = {"X-Forwarded-For": "203.0.113.9"}
ELSEWHERE = {"X-Forwarded-For": "198.51.100.1"}


@pytest.mark.parametrize(
    ("calls", "says", "expected"),
    [
        (BERLIN, {"latitude": 1.0, "longitude": 2.0}, ("Berlin, DE", "geoip", (52.52, 13.405))),
        (ELSEWHERE, {"latitude": 1.0, "longitude": 2.0}, ("US-East", "declared", (1, 2))),
        (ELSEWHERE, {"latitude": 1.0}, ("US-East", "declared", None)),
        (ELSEWHERE, {"location": "unknown"}, ("unknown", "unknown", None)),
    ],
    ids=["by its address", "by its word", "half a word", "not at all"],
)
async def test_where_a_node_is(
    located: Gateway,
    calls: dict[str, str],
    says: dict[str, Any],
    expected: tuple[str, str, tuple[float, float] | None],
) -> None:
    body = await registration(located, **says)
    answer = (await located.client.post(REGISTER, json=body, headers=calls)).json()
    token = {"Authorization": f"Bearer {answer['node_token']}"}
    await beat(located, answer["node_id"], token)
    [node] = await live_lookup.available_nodes(located.redis, MODEL_ID)
    assert (node.location, node.located, node.coordinates) == expected


async def test_a_generation_knows_about_where_its_user_is(located: Gateway) -> None:
    """In whole degrees; nothing where the address tells nothing."""
    node_id, token = await registered(located)
    await beat(located, node_id, token)
    await located.deposit("1")
    found = []
    for calls in (BERLIN, ELSEWHERE):
        headers = calls | {"Prefer": "respond-async"}
        answer = await located.client.post(GENERATE, json=request_body(), headers=headers)
        row = await Job(located, answer.json()["request_id"]).row()
        found.append((row.near_latitude, row.near_longitude))
    assert found == [(53, 13), (None, None)]


async def test_a_database_that_tells_no_cities(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    country = tmp_path / "countries.mmdb"
    writer = MMDBWriter(database_type="GeoLite2-Country")
    writer.insert_network(IPSet(["203.0.113.0/24"]), {"country": {"iso_code": "DE"}})
    writer.to_db_file(str(country))
    text = tmp_path / "text.mmdb"
    text.write_text("no database")
    for file in (country, text, tmp_path / "missing.mmdb"):
        with pytest.raises(ValueError, match="GEOIP_DATABASE"):
            GeoIp(file)


async def test_a_node_speaks_for_itself_only(gateway: Gateway) -> None:
    node_id, _ = await registered(gateway)
    _, other_token = await registered(gateway)
    problem(await beat(gateway, node_id, other_token), 403, "forbidden")
    problem(await beat(gateway, node_id, gateway.login(WALLET)), 403, "forbidden")
    problem(await beat(gateway, node_id, {"Authorization": ""}), 401, "token_missing")
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []


async def test_a_node_that_was_never_registered(gateway: Gateway) -> None:
    token = gateway.node_login("node_lost")
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
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
