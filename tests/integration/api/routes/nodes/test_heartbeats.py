"""Heartbeats: what they do to routes, rows and figures."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from redis.asyncio import Redis

from market.nodes import live_lookup, live_registry
from market.nodes.tables import RegisteredNode
from market.settings import Settings
from mesh import redis_keys
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    GENERATE,
    LAYERS,
    PROVIDER_WALLET,
    STRANGER,
    WALLET,
    Gateway,
    eventually,
    open_gateway,
    problem,
    request_body,
)
from tests.support.gateway.node_api import (
    REGISTRATION_PATH,
    TTL,
    heartbeat,
    registered,
    registration,
    row_of,
)


async def test_a_heartbeat_puts_a_node_on_the_routes(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)
    answer = await heartbeat(gateway, node_id, token)
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
    await heartbeat(gateway, node_id, token)
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert not node.trusted


async def test_an_unhealthy_node_is_off_the_routes_until_it_is_well(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)
    seen = []
    for healthy in (True, False, True):
        assert (await heartbeat(gateway, node_id, token, is_healthy=healthy)).status_code == 200
        async with gateway.sessions() as db:
            row = await db.get_one(RegisteredNode, node_id)
        active = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
        seen.append((len(active), row.is_active, row.last_seen is not None))
    assert seen == [(1, True, True), (0, False, True), (1, True, True)]


async def test_time_between_heartbeats_counts_as_uptime(gateway: Gateway) -> None:
    """Gathered in Redis, written when the node leaves; what lies before a silence counts, too."""
    node_id, token = await registered(gateway)
    await heartbeat(gateway, node_id, token)

    async def listed() -> bool:
        await heartbeat(gateway, node_id, token)
        return await live_registry.unsaved_uptime(gateway.redis, node_id) > 0

    await eventually(listed)
    gathered = await live_registry.unsaved_uptime(gateway.redis, node_id)
    assert 0 < gathered < TTL
    assert (await row_of(gateway, node_id)).uptime_seconds == 0
    await gateway.redis.delete(redis_keys.node(node_id))  # silent for longer than its time to live
    await heartbeat(gateway, node_id, token)
    assert (await row_of(gateway, node_id)).uptime_seconds == pytest.approx(gathered)
    assert await live_registry.unsaved_uptime(gateway.redis, node_id) == pytest.approx(0, abs=1e-9)
    await heartbeat(gateway, node_id, token, is_healthy=False)
    row = await row_of(gateway, node_id)
    assert gathered <= row.uptime_seconds < TTL
    assert not row.is_active


async def test_a_heartbeat_asks_postgres_now_and_then(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    """Steady heartbeats write no row until the interval is over; with none, each does."""
    for interval, writes in ((3600, 0), (0, 3)):
        discovery = {"row_interval": interval}
        async with open_gateway(make_settings(discovery=discovery)) as gateway:
            node_id, token = await registered(gateway)
            await heartbeat(gateway, node_id, token)
            seen = [(await row_of(gateway, node_id)).last_seen]
            for _ in range(3):
                assert (await heartbeat(gateway, node_id, token)).status_code == 200
                seen.append((await row_of(gateway, node_id)).last_seen)
            assert len(set(seen)) - 1 == writes


async def test_a_node_whose_row_was_deleted_is_off_within_the_interval(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    async with open_gateway(make_settings(discovery={"row_interval": 0})) as gateway:
        node_id, token = await registered(gateway)
        await heartbeat(gateway, node_id, token)
        async with gateway.sessions.begin() as db:
            await db.delete(await db.get_one(RegisteredNode, node_id))
        problem(await heartbeat(gateway, node_id, token), 404, "node_not_found")
        assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []


async def test_trust_that_was_withdrawn_counts_from_the_next_heartbeat(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)
    await heartbeat(gateway, node_id, token)
    gateway.services.settings.discovery.trusted_wallets = []
    await heartbeat(gateway, node_id, token)
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert not node.trusted


async def test_an_edge_needs_the_wallets_own_signature_unless_the_operator_says_otherwise(
    gateway: Gateway,
) -> None:
    """A machine's token lies on its disk: who copies it would see prompts."""
    headers = await gateway.machine(PROVIDER_WALLET)
    body = await registration(gateway)
    for name in ("nonce", "expires_at", "signature"):
        del body[name]
    answer = await gateway.client.post(REGISTRATION_PATH, json=body, headers=headers)
    node = answer.raise_for_status().json()
    token = {"Authorization": f"Bearer {node['node_token']}"}

    async def trusted() -> bool:
        await heartbeat(gateway, node["node_id"], token)
        [found] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
        return found.trusted

    assert not await trusted()
    assert not await trusted(), "nor by the record in Redis alone"
    gateway.services.settings.discovery.edge_by_machine_token = True
    assert await trusted()
    by_wallet, own = await registered(gateway)
    gateway.services.settings.discovery.edge_by_machine_token = False
    await heartbeat(gateway, by_wallet, own)
    await heartbeat(gateway, node["node_id"], token)
    found = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert {each.node_id: each.trusted for each in found} == {
        node["node_id"]: False,
        by_wallet: True,
    }


async def test_a_node_that_loads_is_not_on_the_routes(gateway: Gateway) -> None:
    node_id, token = await registered(gateway)
    loads = {"is_healthy": False, "is_loading": True, "fetched_bytes": 5}
    assert (await heartbeat(gateway, node_id, token, **loads)).status_code == 200
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
    row = await row_of(gateway, node_id)
    assert (row.last_seen, row.is_active) == (None, True)
    old = token
    async with gateway.sessions.begin() as db:
        (await db.get_one(RegisteredNode, node_id)).registration += 1
    problem(await heartbeat(gateway, node_id, old, **loads), 404, "node_not_found")


MEASURED = {
    "hop_ms": 17.5,
    "batch_invariant": True,
    "load_bytes_per_second": 2e8,
    "gpu_utilization_percent": 63,
    "vram_used_gb": 20.5,
}


async def test_what_placement_and_routes_want_to_know(gateway: Gateway) -> None:
    """What a node says once, what it measures, and what has changed since it registered."""
    said = {"quantization": "int8", "memory_bytes": 24 * 10**9, "max_sessions": 4}
    node_id, token = await registered(gateway, min_price="0.000123456789012345", **said)
    await heartbeat(gateway, node_id, token, **MEASURED)
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert {name: getattr(node, name) for name in said} == said
    assert {name: getattr(node, name) for name in MEASURED} == MEASURED
    assert node.min_price == Decimal("0.000123456789012345")
    await heartbeat(gateway, node_id, token, memory_bytes=10**9)
    [node] = await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    assert (node.memory_bytes, node.quantization, node.hop_ms) == (10**9, "int8", 0)


async def test_a_node_speaks_for_itself_only(gateway: Gateway) -> None:
    node_id, _ = await registered(gateway)
    _, other_token = await registered(gateway)
    problem(await heartbeat(gateway, node_id, other_token), 403, "forbidden")
    problem(await heartbeat(gateway, node_id, gateway.login(WALLET)), 403, "scope_missing")
    problem(await heartbeat(gateway, node_id, {"Authorization": ""}), 401, "token_missing")
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []


async def test_a_node_that_was_never_registered(gateway: Gateway) -> None:
    token = gateway.node_login("node_lost")
    answer = await heartbeat(gateway, "node_lost", token)
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
    problem(
        await heartbeat(gateway, node_id, token, **{field: value}), 422, f"{field}_out_of_range"
    )
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []
