"""Nodes that leave their span to the platform: placed, and rebalanced one rebalance at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from market.nodes import live_lookup, live_registry
from market.nodes.tables import RegisteredNode
from market.placement import loading_nodes, newcomers, rebalances
from market.placement.tables import UNDER_WAY, Rebalance
from market.resources import Resources, open_resources
from market.routing.eligibility import SkipReason
from market.routing.skip_counts import SkipCounter
from market.settings import Settings
from mesh import redis_keys
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.gateway.api import (
    LAYERS,
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    Gateway,
    open_gateway,
    problem,
)
from tests.support.market.provider import Provider
from workers.crons import rebalance as crons_rebalance
from workers.crons.rebalance import rebalance_model

OTHER_MODEL = "far/other"


EAGER = {"half_life": 1e-3, "pause": 0, "positions": 1024, "threshold": 0.1}


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    offer = {"path": str(DEMO_MODEL), "payment_per_token": "0.0001"}
    return make_settings(
        models=[offer | {"id": model_id} for model_id in (MODEL_ID, OTHER_MODEL)],
        discovery={"trusted_wallets": [PROVIDER.address]},
        placement=EAGER,
    )


@pytest.fixture
async def gateway(settings: Settings, redis: Redis) -> AsyncIterator[Gateway]:
    async with open_gateway(settings) as opened:
        yield opened


@pytest.fixture
async def resources(settings: Settings, redis: Redis) -> AsyncIterator[Resources]:
    async with open_resources(settings) as opened:
        yield opened


async def recorded(resources: Resources) -> list[Rebalance]:
    async with resources.sessions() as db:
        return list(await db.scalars(select(Rebalance).order_by(Rebalance.id)))


async def rebalance(resources: Resources) -> None:
    await rebalance_model(resources, resources.catalog.get(MODEL_ID))


async def two_nodes(gateway: Gateway) -> tuple[Provider, Provider]:
    """A node that serves all layers, and one as quick that came later."""
    first, second = Provider(gateway, "a"), Provider(gateway, "b", STRANGER)
    await first.join()
    await first.heartbeat(ms=10)
    await second.join()
    await second.heartbeat()
    return first, second


async def test_new_clusters_are_covered_from_both_ends(gateway: Gateway) -> None:
    """Both register at once, and before either has sent a heartbeat."""
    needs = {"memory_bytes": 30_000_000}
    stranger, trusted = Provider(gateway, "a", STRANGER), Provider(gateway, "b")
    answers = await asyncio.gather(stranger.join(**needs), trusted.join(**needs))
    assert [answer["edge"] for answer in answers] == [False, True]
    assert stranger.span[0] > 0
    assert stranger.span[1] == LAYERS
    assert trusted.span[0] == 0
    assert trusted.span[1] >= 1


async def test_a_node_without_memory_is_refused(gateway: Gateway) -> None:
    await Provider(gateway, "a").join()
    refused = await Provider(gateway, "b").join(memory_bytes=1000)
    assert refused["code"] == "memory_bytes_too_small"


async def test_a_node_that_comes_back_serves_what_it_served(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    for node in (first, second):
        await node.load(await node.heartbeat())
    reply = await first.heartbeat()
    first.span = (reply["start_layer"], reply["end_layer"])
    assert first.span[1] == second.span[0]
    spans = (first.span, second.span)
    for node in (first, second):
        await node.join()
    again = (await first.heartbeat(), await second.heartbeat())
    assert [(reply["start_layer"], reply["end_layer"]) for reply in again] == list(spans)


async def test_a_node_that_comes_back_by_its_name_serves_what_it_served(gateway: Gateway) -> None:
    named = {"device_id": None, "node_id": "attic", "memory_bytes": 12_000_000}
    node = Provider(gateway, "a")
    await node.join(**named)
    span = node.span
    assert span[1] < LAYERS, "there is a slower span, but for its own"
    await node.heartbeat(ms=10)
    await node.join(**named)
    assert (node.id, node.span) == ("attic", span)


async def test_a_join_causes_one_rebalance_that_takes_effect_when_all_have_loaded(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    await rebalance(resources)
    [found] = await recorded(resources)
    assert found.state == "proposed"
    assert {change["node_id"] for change in found.changes} == {first.id, second.id}
    replies = [await first.heartbeat(ms=10), await second.heartbeat()]
    assert all(answer["should_rebalance"] for answer in replies)
    assert [found.state for found in await recorded(resources)] == ["loading"]
    waiting = await first.load(replies[0])
    assert waiting["should_rebalance"]
    before = {
        n.node_id: n.layers_served
        for n in await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    }
    assert before[first.id] == list(range(LAYERS)), "nothing changes until all can"
    await second.load(replies[1])
    await first.heartbeat(ms=10)
    assert [found.state for found in await recorded(resources)] == ["switched"]
    nodes = {n.node_id: n for n in await live_lookup.available_nodes(gateway.redis, MODEL_ID)}
    assert nodes[first.id].end_layer == nodes[second.id].start_layer
    assert (nodes[first.id].start_layer, nodes[second.id].end_layer) == (0, LAYERS)
    assert not (await first.heartbeat())["should_rebalance"]
    assert not await gateway.redis.exists(
        redis_keys.assignment(first.id), redis_keys.assignment(second.id)
    )


async def test_drift_causes_a_rebalance_and_noise_does_not(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    for node in (first, second):
        await node.load(await node.heartbeat(ms=10))
    reply = await first.heartbeat(ms=10)
    first.span = (reply["start_layer"], reply["end_layer"])
    for ms in (10.0, 10.2, 9.8, 10.1, 9.9):
        await first.heartbeat(ms=ms)
        await second.heartbeat(ms=20 - ms)
        await rebalance(resources)
    assert len(await recorded(resources)) == 1
    await second.heartbeat(ms=40)
    await rebalance(resources)
    [_, drift] = await recorded(resources)
    shorter = {change["node_id"]: change for change in drift.changes}[second.id]
    assert shorter["new"][1] - shorter["new"][0] < shorter["old"][1] - shorter["old"][0]


async def test_a_node_that_cannot_load_stays_and_is_not_asked_again(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    reply = await second.heartbeat()
    span = [reply["start_layer"], reply["end_layer"]]
    answer = await second.heartbeat(cannot_serve=span)
    assert not answer["should_rebalance"]
    assert not (await first.heartbeat(ms=10))["should_rebalance"]
    await rebalance(resources)
    [found, *later] = await recorded(resources)
    assert all(second.id not in rebalances.nodes_of(each) for each in later)
    assert (found.state, second.id in (found.reason or "")) == ("failed", True)


async def test_a_rebalance_of_a_node_that_is_gone_fails(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    await first.heartbeat(ms=10)
    resources.settings.discovery.node_ttl = 0
    await live_registry.evict(resources.redis, second.id, MODEL_ID)
    await rebalance(resources)
    [found] = await recorded(resources)
    assert found.state == "failed"
    assert not (await first.heartbeat(ms=10))["should_rebalance"]


@pytest.mark.parametrize(
    "again", [{"pinned": (2, LAYERS)}, {"model_id": OTHER_MODEL}], ids=["pinned", "another model"]
)
async def test_a_node_that_comes_back_for_a_span_of_its_own_is_not_rebalanced(
    gateway: Gateway, resources: Resources, again: dict[str, Any]
) -> None:
    """The node had loaded already: when the last of the others had, all would have switched."""
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    reply = await first.heartbeat(ms=10)
    await second.load(await second.heartbeat())
    await second.join(**again)
    chosen = second.span
    [found] = await recorded(resources)
    assert (found.state, second.id in (found.reason or "")) == ("failed", True)
    assert not await gateway.redis.exists(
        redis_keys.assignment(first.id), redis_keys.assignment(second.id)
    )
    assert not (await second.heartbeat())["should_rebalance"]
    stays = await first.load(reply)
    assert (stays["should_rebalance"], first.span) == (False, (0, LAYERS))
    async with resources.sessions() as db:
        row = await db.get_one(RegisteredNode, second.id)
    assert (row.start_layer, row.end_layer) == chosen
    async with resources.sessions() as db:
        assert (await db.get_one(RegisteredNode, first.id)).end_layer == LAYERS


async def test_no_node_switches_without_one_that_is_pinned_meanwhile(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    replies = [await first.heartbeat(ms=10), await second.heartbeat()]
    await first.load(replies[0])
    async with resources.sessions.begin() as db:
        (await db.get_one(RegisteredNode, first.id)).placeable = False
    answer = await second.load(replies[1])
    assert not answer["should_rebalance"]
    [found] = await recorded(resources)
    assert (found.state, first.id in (found.reason or "")) == ("failed", True)
    async with resources.sessions() as db:
        rows = [await db.get_one(RegisteredNode, node.id) for node in (first, second)]
    assert [(row.start_layer, row.end_layer) for row in rows] == [first.span, second.span]


async def test_a_rebalance_under_way_expires_though_rebalancing_is_disabled(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    resources.settings.placement.enabled = False
    resources.settings.placement.move_limit = 1e-3
    await crons_rebalance.rebalance({"resources": resources})
    await crons_rebalance.rebalance({"resources": resources})
    assert [found.state for found in await recorded(resources)] == ["expired"]
    for node in (first, second):
        assert not (await node.heartbeat(ms=10))["should_rebalance"]


async def test_a_slow_download_that_is_moving_is_not_late(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    resources.settings.placement.move_limit = 1e-3

    async def state() -> str:
        await crons_rebalance.rebalance({"resources": resources})
        return (await recorded(resources))[0].state

    for fetched in (1, 2):  # bytes
        for node in (first, second):
            await node.heartbeat(ms=10, fetched_bytes=fetched)
        assert await state() in UNDER_WAY
    # The second makes no progress any more: what it has said before does not count again.
    await gateway.redis.delete(redis_keys.loading(second.id))
    await first.heartbeat(ms=10, fetched_bytes=3)
    assert await state() == "expired"
    [found] = await recorded(resources)
    assert second.id in (found.reason or "")
    assert first.id not in (found.reason or "")


async def test_progress_is_more_bytes_than_before(gateway: Gateway) -> None:
    redis, stall = gateway.redis, 100
    key = redis_keys.loading("node")
    await loading_nodes.record_progress(redis, "node", 10, stall=stall)
    await redis.pexpire(key, 5000)
    for fetched in (10, 9):
        await loading_nodes.record_progress(redis, "node", fetched, stall=stall)
        assert await redis.pttl(key) <= 5000
    await loading_nodes.record_progress(redis, "node", 11, stall=stall)
    assert await redis.pttl(key) > 5000
    assert await loading_nodes.moving(redis, ["other", "node"]) == {"node"}


async def test_a_newcomer_counts_for_as_long_as_its_weights_come(
    gateway: Gateway, resources: Resources
) -> None:
    model = resources.catalog.get(MODEL_ID)
    first, second = Provider(gateway, "a"), Provider(gateway, "b")
    for node in (first, second):
        await node.join()
    reply = await first.heartbeat(is_healthy=False, is_loading=True, fetched_bytes=1)
    assert not reply["should_rebalance"]
    assert await live_lookup.available_nodes(gateway.redis, MODEL_ID) == []

    async def counted() -> set[str]:
        async with resources.sessions() as db:
            return {node.node_id for node in await newcomers.loading(resources, db, model, set())}

    assert await counted() == {first.id, second.id}
    resources.settings.placement.loading_limit = 1e-3
    assert await counted() == {first.id}, "nothing has come from the second for long"
    await gateway.redis.delete(redis_keys.loading(first.id))
    assert await counted() == set()


async def test_assignments_outlive_redis(gateway: Gateway, resources: Resources) -> None:
    first, second = await two_nodes(gateway)
    await rebalance(resources)
    await gateway.redis.flushall()
    for node in (first, second):
        assert not (await node.heartbeat(ms=10))["should_rebalance"]
    await rebalance(resources)
    assert (await first.heartbeat(ms=10))["should_rebalance"]
    assert len(await recorded(resources)) == 1


async def test_a_fixed_span_is_never_changed(gateway: Gateway, resources: Resources) -> None:
    first, second = await two_nodes(gateway)
    async with resources.sessions.begin() as db:
        for node in (first, second):
            (await db.get_one(RegisteredNode, node.id)).placeable = False
    await gateway.redis.flushall()
    await first.heartbeat(ms=10)
    await second.heartbeat()
    await rebalance(resources)
    assert await recorded(resources) == []


async def test_a_provider_sees_a_node_and_why_it_gets_no_work(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two_nodes(gateway)
    skips = SkipCounter(resources.redis)
    for _ in range(2):
        await skips.count({second.id: SkipReason.SPAN_MEETS_NOBODY})
    url = f"/api/nodes/{second.id}"
    view = (await gateway.client.get(url, headers=second.headers)).json()
    assert view["skipped"] == {"span_meets_nobody": 2}
    assert (view["state"], view["placeable"], view["moving_to"]) == ("serving", True, None)
    assert view["layers_served"] == list(range(*second.span))
    machine = await gateway.machine(STRANGER.address.lower())
    for headers in (gateway.login(STRANGER.address), machine):
        assert (await gateway.client.get(url, headers=headers)).json()["node_id"] == second.id
    for headers in (first.headers, gateway.login(PROVIDER.address)):
        problem(await gateway.client.get(url, headers=headers), 404, "node_not_found")
    problem(await gateway.client.get(url, headers={"Authorization": ""}), 401, "token_missing")


async def test_a_providers_stats_and_history(gateway: Gateway) -> None:
    first, _ = await two_nodes(gateway)
    asked = {"wallet_address": PROVIDER_WALLET}
    stats = (await gateway.client.get("/api/provider/stats", params=asked)).json()
    assert stats["active_nodes"] == 1
    assert stats["avg_latency_ms"] == pytest.approx(10 * first.work)
    assert (stats["total_earned_far"], stats["total_requests_served"]) == (0, 0)
    assert stats["reliability_score"] is None
    mine = await gateway.client.get("/api/provider/stats", headers=gateway.login(PROVIDER.address))
    assert mine.json() == stats
    answer = await gateway.client.get("/api/provider/earnings/history", params=asked)
    assert answer.json() == []
    nobody = await gateway.client.get("/api/provider/stats", headers={"Authorization": ""})
    problem(nobody, 401, "token_missing")
    far = await gateway.client.get("/api/provider/earnings/history", params=asked | {"days": 1000})
    assert far.status_code == 422
