"""Placing nodes that leave it to the platform, and moving them: one move at a time, and no more."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from market.nodes import live_lookup, live_registry
from market.nodes.tables import RegisteredNode
from market.placement.tables import Rebalance
from market.resources import Resources, open_resources
from market.routing.eligibility import SkipReason
from market.routing.skip_counts import SkipCounter
from market.settings import Settings
from mesh import redis_keys, signed_texts
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.api import (
    LAYERS,
    PROVIDER,
    PROVIDER_WALLET,
    STRANGER,
    Gateway,
    open_gateway,
    problem,
)
from workers.crons import rebalance as crons_rebalance
from workers.crons.rebalance import rebalance_model

OTHER_MODEL = "far/other"
ROOMY = 10**9
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


class Provider:
    """A node that the test plays."""

    def __init__(self, gateway: Gateway, device: str, signer: Any = PROVIDER) -> None:
        self._gateway = gateway
        self._device = device
        self._signer = signer
        self.span = (0, 0)

    async def join(
        self, pinned: tuple[int, int] | None = None, model_id: str = MODEL_ID, **changes: Any
    ) -> dict[str, Any]:
        """Register, and leave the span to the platform, unless one is pinned."""
        start, end = pinned or (None, None)
        edge = start == 0
        nonce = (await self._gateway.client.get("/api/auth/nonce")).json()["nonce"]
        message = signed_texts.registration_message(
            wallet_address=self._signer.address,
            model_id=model_id,
            start_layer=start,
            end_layer=end,
            edge=edge,
            nonce=nonce,
        )
        body = {
            "wallet_address": self._signer.address,
            "model_id": model_id,
            "gpu_model": "CPU",
            "vram_gb": 0,
            "public_addr": "192.0.2.1:31330",
            "location": "unknown",
            "placeable": pinned is None,
            "device_id": self._device,
            "memory_bytes": ROOMY,
            "nonce": nonce,
            "signature": signed_texts.sign(message, self._signer.key),
        }
        if pinned is not None:
            body |= {"start_layer": start, "end_layer": end, "edge": edge}
        answer = await self._gateway.client.post(
            "/api/nodes/register-distributed", json=body | changes
        )
        node: dict[str, Any] = answer.json()
        if answer.status_code == 200:
            self.id, token = node["node_id"], node["node_token"]
            self.headers = {"Authorization": f"Bearer {token}"}
            self.span = (node["layers_served"][0], node["layers_served"][-1] + 1)
        return node

    @property
    def work(self) -> float:
        """Of a step, in layers, with the edge's."""
        start, end = self.span
        model = self._gateway.services.catalog.get(MODEL_ID)
        return end - start + (0 if start else model.edge_units / 1000)

    async def beat(self, *, ms: float = 0.0, **changes: Any) -> dict[str, Any]:
        """A heartbeat of a node that needs so many milliseconds for a layer."""
        body = {
            "node_id": self.id,
            "is_healthy": True,
            "latency_ms": ms * self.work,
            "throughput_tokens_per_sec": 1,
            "memory_bytes": ROOMY,
            "load_bytes_per_second": 1e9,
            "serves": [self.span],
        }
        answer = await self._gateway.client.post(
            "/api/nodes/heartbeat", json=body | changes, headers=self.headers
        )
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def obey(self, told: dict[str, Any]) -> dict[str, Any]:
        """Load what it is told to, and say so; the answer to that."""
        new = (told["start_layer"], told["end_layer"])
        answer = await self.beat(serves=[self.span, new])
        if not answer["should_rebalance"]:
            self.span = (answer["start_layer"], answer["end_layer"])
        return answer


async def moves(resources: Resources) -> list[Rebalance]:
    async with resources.sessions() as db:
        return list(await db.scalars(select(Rebalance).order_by(Rebalance.id)))


async def rebalance(resources: Resources) -> None:
    await rebalance_model(resources, resources.catalog.get(MODEL_ID))


async def two(gateway: Gateway) -> tuple[Provider, Provider]:
    """One that serves all, and one that came later and has nothing to do yet; both as quick."""
    first, second = Provider(gateway, "a"), Provider(gateway, "b", STRANGER)
    await first.join()
    await first.beat(ms=10)
    await second.join()
    await second.beat()
    return first, second


async def test_young_swarms_are_covered_from_both_ends(gateway: Gateway) -> None:
    """At once, and before anybody was heard."""
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


async def test_who_comes_back_serves_what_it_served(gateway: Gateway, resources: Resources) -> None:
    first, second = await two(gateway)
    await rebalance(resources)
    for node in (first, second):
        await node.obey(await node.beat())
    told = await first.beat()
    first.span = (told["start_layer"], told["end_layer"])
    assert first.span[1] == second.span[0]
    spans = (first.span, second.span)
    for node in (first, second):
        await node.join()
    again = (await first.beat(), await second.beat())
    assert [(told["start_layer"], told["end_layer"]) for told in again] == list(spans)


async def test_who_comes_back_by_its_name_serves_what_it_served(gateway: Gateway) -> None:
    named = {"device_id": None, "node_id": "attic", "memory_bytes": 12_000_000}
    node = Provider(gateway, "a")
    await node.join(**named)
    span = node.span
    assert span[1] < LAYERS, "there is a weaker place, but for its own"
    await node.beat(ms=10)
    await node.join(**named)
    assert (node.id, node.span) == ("attic", span)


async def test_a_join_causes_one_move_that_takes_effect_when_all_have_loaded(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two(gateway)
    await rebalance(resources)
    await rebalance(resources)
    [move] = await moves(resources)
    assert move.state == "proposed"
    assert {change["node_id"] for change in move.changes} == {first.id, second.id}
    told = [await first.beat(ms=10), await second.beat()]
    assert all(answer["should_rebalance"] for answer in told)
    assert [move.state for move in await moves(resources)] == ["loading"]
    waiting = await first.obey(told[0])
    assert waiting["should_rebalance"]
    before = {
        n.node_id: n.layers_served
        for n in await live_lookup.available_nodes(gateway.redis, MODEL_ID)
    }
    assert before[first.id] == list(range(LAYERS)), "nothing changes until all can"
    await second.obey(told[1])
    await first.beat(ms=10)
    assert [move.state for move in await moves(resources)] == ["switched"]
    nodes = {n.node_id: n for n in await live_lookup.available_nodes(gateway.redis, MODEL_ID)}
    assert nodes[first.id].end_layer == nodes[second.id].start_layer
    assert (nodes[first.id].start_layer, nodes[second.id].end_layer) == (0, LAYERS)
    assert not (await first.beat())["should_rebalance"]
    assert not await gateway.redis.exists(
        redis_keys.assignment(first.id), redis_keys.assignment(second.id)
    )


async def test_noise_moves_nobody_and_drift_does(gateway: Gateway, resources: Resources) -> None:
    first, second = await two(gateway)
    await rebalance(resources)
    for node in (first, second):
        await node.obey(await node.beat(ms=10))
    told = await first.beat(ms=10)
    first.span = (told["start_layer"], told["end_layer"])
    for ms in (10.0, 10.2, 9.8, 10.1, 9.9):
        await first.beat(ms=ms)
        await second.beat(ms=20 - ms)
        await rebalance(resources)
    assert len(await moves(resources)) == 1
    await second.beat(ms=40)
    await rebalance(resources)
    [_, drift] = await moves(resources)
    shorter = {change["node_id"]: change for change in drift.changes}[second.id]
    assert shorter["new"][1] - shorter["new"][0] < shorter["old"][1] - shorter["old"][0]


async def test_who_cannot_load_stays_and_is_not_asked_again(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two(gateway)
    await rebalance(resources)
    told = await second.beat()
    span = [told["start_layer"], told["end_layer"]]
    answer = await second.beat(cannot_serve=span)
    assert not answer["should_rebalance"]
    assert not (await first.beat(ms=10))["should_rebalance"]
    await rebalance(resources)
    [move] = await moves(resources)
    assert (move.state, second.id in (move.reason or "")) == ("failed", True)


async def test_a_move_of_a_node_that_is_gone_is_given_up(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two(gateway)
    await rebalance(resources)
    await first.beat(ms=10)
    resources.settings.discovery.node_ttl = 0
    await live_registry.evict(resources.redis, second.id, MODEL_ID)
    await rebalance(resources)
    [move] = await moves(resources)
    assert move.state == "failed"
    assert not (await first.beat(ms=10))["should_rebalance"]


@pytest.mark.parametrize(
    "again", [{"pinned": (2, LAYERS)}, {"model_id": OTHER_MODEL}], ids=["pinned", "another model"]
)
async def test_who_comes_back_for_a_span_of_its_own_is_not_moved(
    gateway: Gateway, resources: Resources, again: dict[str, Any]
) -> None:
    """It had loaded already: the last of the others would have moved it."""
    first, second = await two(gateway)
    await rebalance(resources)
    told = await first.beat(ms=10)
    await second.obey(await second.beat())
    await second.join(**again)
    chosen = second.span
    [move] = await moves(resources)
    assert (move.state, second.id in (move.reason or "")) == ("failed", True)
    assert not await gateway.redis.exists(
        redis_keys.assignment(first.id), redis_keys.assignment(second.id)
    )
    assert not (await second.beat())["should_rebalance"]
    stays = await first.obey(told)
    assert (stays["should_rebalance"], first.span) == (False, (0, LAYERS))
    async with resources.sessions() as db:
        row = await db.get_one(RegisteredNode, second.id)
    assert (row.start_layer, row.end_layer) == chosen
    async with resources.sessions() as db:
        assert (await db.get_one(RegisteredNode, first.id)).end_layer == LAYERS


async def test_nobody_switches_without_a_node_that_is_pinned_meanwhile(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two(gateway)
    await rebalance(resources)
    told = [await first.beat(ms=10), await second.beat()]
    await first.obey(told[0])
    async with resources.sessions.begin() as db:
        (await db.get_one(RegisteredNode, first.id)).placeable = False
    answer = await second.obey(told[1])
    assert not answer["should_rebalance"]
    [move] = await moves(resources)
    assert (move.state, first.id in (move.reason or "")) == ("failed", True)
    async with resources.sessions() as db:
        rows = [await db.get_one(RegisteredNode, node.id) for node in (first, second)]
    assert [(row.start_layer, row.end_layer) for row in rows] == [first.span, second.span]


async def test_a_move_under_way_still_expires_where_none_are_begun_any_more(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two(gateway)
    await rebalance(resources)
    resources.settings.placement.enabled = False
    resources.settings.placement.move_limit = 1e-3
    await crons_rebalance.rebalance({"resources": resources})
    await crons_rebalance.rebalance({"resources": resources})
    assert [move.state for move in await moves(resources)] == ["expired"]
    for node in (first, second):
        assert not (await node.beat(ms=10))["should_rebalance"]


async def test_orders_outlive_redis(gateway: Gateway, resources: Resources) -> None:
    first, second = await two(gateway)
    await rebalance(resources)
    await gateway.redis.flushall()
    for node in (first, second):
        assert not (await node.beat(ms=10))["should_rebalance"]
    await rebalance(resources)
    assert (await first.beat(ms=10))["should_rebalance"]
    assert len(await moves(resources)) == 1


async def test_a_fixed_span_is_never_moved(gateway: Gateway, resources: Resources) -> None:
    first, second = await two(gateway)
    async with resources.sessions.begin() as db:
        for node in (first, second):
            (await db.get_one(RegisteredNode, node.id)).placeable = False
    await gateway.redis.flushall()
    await first.beat(ms=10)
    await second.beat()
    await rebalance(resources)
    assert await moves(resources) == []


async def test_a_provider_sees_his_node_and_why_it_gets_no_work(
    gateway: Gateway, resources: Resources
) -> None:
    first, second = await two(gateway)
    skips = SkipCounter(resources.redis)
    for _ in range(2):
        await skips.count({second.id: SkipReason.SPAN_MEETS_NOBODY})
    url = f"/api/nodes/{second.id}"
    seen = (await gateway.client.get(url, headers=second.headers)).json()
    assert seen["skipped"] == {"span_meets_nobody": 2}
    assert (seen["state"], seen["placeable"], seen["moving_to"]) == ("serving", True, None)
    assert seen["layers_served"] == list(range(*second.span))
    machine = await gateway.machine(STRANGER.address.lower())
    for headers in (gateway.login(STRANGER.address), machine):
        assert (await gateway.client.get(url, headers=headers)).json()["node_id"] == second.id
    for headers in (first.headers, gateway.login(PROVIDER.address)):
        problem(await gateway.client.get(url, headers=headers), 404, "node_not_found")
    problem(await gateway.client.get(url, headers={"Authorization": ""}), 401, "token_missing")


async def test_a_providers_stats_and_history(gateway: Gateway) -> None:
    first, _ = await two(gateway)
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
