"""What anybody may see: active nodes, models, earnings."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal

import httpx
import pytest
from redis.asyncio import Redis

from api import discovery_app
from market import ledger
from market.nodes import cooldowns, live_registry
from market.nodes.node import Node
from market.nodes.tables import RegisteredNode
from market.routing.skip_counts import skips_of
from market.settings import Settings
from mesh import signed_texts
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    LAYERS,
    OTHER_WALLET,
    PROVIDER,
    PROVIDER_WALLET,
    WALLET,
    Gateway,
    all_nodes,
    node,
    open_gateway,
    problem,
    request_body,
)
from tests.support.gateway.signing import challenge

NODES = f"/api/discovery/nodes/active/{MODEL_ID}"


async def model_on_offer(gateway: Gateway) -> dict[str, object]:
    [model] = (await gateway.client.get("/api/inference/models")).json()["models"]
    assert isinstance(model, dict)
    return model


async def test_active_nodes_have_the_specifications_fields(gateway: Gateway) -> None:
    answer = (await gateway.client.get(NODES)).json()
    assert (answer["model_id"], answer["total_nodes"]) == (MODEL_ID, 3)
    assert answer["nodes"][1] == {
        "node_id": "node_1",
        "wallet_address": PROVIDER_WALLET,
        "model_id": MODEL_ID,
        "gpu_model": "RTX 4090",
        "vram_gb": 24,
        "location": "US-East",
        "located": "unknown",
        "layers_served": [2, 3],
        "edge": False,
        "quantization": "none",
        "batch_invariant": False,
        "is_healthy": True,
        "last_seen": "1970-01-01T00:00:00Z",
        "reliability_score": None,
        "avg_latency_ms": 5,
        "hop_ms": 0,
        "throughput_tokens_per_sec": 100,
        "current_requests": 0,
        "gpu_utilization_percent": 0,
        "vram_used_gb": 0,
    }


async def test_the_discovery_service_answers_with_the_same_nodes(gateway: Gateway) -> None:
    """Under the specification's other paths, in its other form; by location, too."""
    nodes = (await gateway.client.get(NODES)).json()["nodes"]
    answer = await gateway.client.get(f"/nodes/active/{MODEL_ID}")
    assert answer.json() == {"nodes": nodes, "count": 3}
    await gateway.announce(node(2, location="EU-West"))
    for location, count in (("US-East", 2), ("EU-West", 1), ("Mars", 0)):
        answer = await gateway.client.get(
            f"/nodes/active/{MODEL_ID}", params={"location": location}
        )
        assert answer.json()["count"] == count


def test_what_a_node_is_told_of_itself_is_the_gateways_alone(
    make_settings: Callable[..., Settings],
) -> None:
    assert (
        "/api/nodes/{node_id}" not in discovery_app.create_app(make_settings()).openapi()["paths"]
    )


async def test_a_node_lives_on_the_discovery_services_paths(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    """The service by itself, with the specification's bodies, signed."""
    app = discovery_app.create_app(make_settings())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        signed = await challenge(client)
        message = signed_texts.registration_message(
            wallet_address=PROVIDER.address,
            model_id=MODEL_ID,
            start_layer=2,
            end_layer=4,
            edge=False,
            **signed,
        )
        answer = await client.post(
            "/nodes/register",
            json={
                "node_id": "0x1234-0",
                "wallet_address": PROVIDER.address,
                "model_id": MODEL_ID,
                "layers_served": [2, 3],
                "gpu_model": "NVIDIA RTX 4090",
                "vram_gb": 24,
                "location": "US-East",
                "public_addr": "1.2.3.4:31330",
                "nonce": signed["nonce"],
                "expires_at": signed["expires_at"],
                "signature": signed_texts.sign(message, PROVIDER.key),
            },
        )
        registered = answer.json()
        assert (registered["status"], registered["node_id"]) == ("registered", "0x1234-0")
        answer = await client.post(
            "/nodes/heartbeat",
            json={
                "node_id": "0x1234-0",
                "model_id": MODEL_ID,
                "is_healthy": True,
                "latency_ms": 50,
                "throughput_tokens_per_sec": 10,
                "last_seen": "2025-01-01T00:00:00",
            },
            headers={"Authorization": f"Bearer {registered['node_token']}"},
        )
        assert answer.json() == {
            "status": "ok",
            "should_rebalance": False,
            "start_layer": 2,
            "end_layer": 4,
        }
        found = (await client.get(f"/nodes/active/{MODEL_ID}")).json()
        assert found["count"] == 1
        [listed] = found["nodes"]
        assert (listed["layers_served"], listed["avg_latency_ms"]) == ([2, 3], 50)
        last_seen = dt.datetime.fromisoformat(listed["last_seen"])
        assert abs(dt.datetime.now(dt.UTC) - last_seen) < dt.timedelta(minutes=1)
        assert (await client.post(GENERATE, json={})).status_code == 404


async def test_nodes_that_are_off_the_routes_are_not_listed(gateway: Gateway) -> None:
    await live_registry.evict(gateway.redis, node(0).node_id, node(0).model_id)
    await gateway.announce(node(1, is_healthy=False))
    await cooldowns.cool_down(gateway.redis, "node_2", seconds=60)
    assert (await gateway.client.get(NODES)).json()["nodes"] == []


@pytest.mark.parametrize("model", ["far/other", "x", "%00", "far/pydoc-llama/"])
async def test_nodes_of_an_unknown_model(gateway: Gateway, model: str) -> None:
    answer = await gateway.client.get(f"/api/discovery/nodes/active/{model}")
    problem(answer, 404, "model_not_found")


async def test_models_have_the_specifications_fields(gateway: Gateway) -> None:
    assert await model_on_offer(gateway) == {
        "id": MODEL_ID,
        "name": MODEL_ID,
        "active_nodes": 3,
        "available": True,
        "avg_latency_ms": 15,
        "price_per_token_far": 0.0001,
        "price_per_token_far_exact": "0.0001",
        "price_per_prompt_token_far": 0.00001,
        "price_per_prompt_token_far_exact": "0.00001",
        "price_per_cached_prompt_token_far": 0.000001,
        "price_per_cached_prompt_token_far_exact": "0.000001",
        "min_vram_gb": 1,
        "layers": LAYERS,
        "context_tokens": 1024,
        "batch_invariant": False,
    }


async def test_a_model_is_batch_invariant_where_all_its_nodes_say_so(gateway: Gateway) -> None:
    for number in (0, 1):
        await gateway.announce(node(number, batch_invariant=True))
    assert not (await model_on_offer(gateway))["batch_invariant"]
    await gateway.announce(node(2, batch_invariant=True))
    assert (await model_on_offer(gateway))["batch_invariant"]
    nodes = (await gateway.client.get(NODES)).json()["nodes"]
    assert all(each["batch_invariant"] for each in nodes)


async def test_a_model_with_a_missing_layer_is_not_available(gateway: Gateway) -> None:
    await live_registry.evict(gateway.redis, node(1).node_id, node(1).model_id)
    model = await model_on_offer(gateway)
    assert (model["active_nodes"], model["available"]) == (2, False)
    assert model["avg_latency_ms"] is None


async def test_a_model_is_not_served_until_it_has_as_many_nodes_as_it_wants(
    make_settings: Callable[..., Settings], redis: Redis
) -> None:
    """Also if the nodes that are there cover all of its layers."""
    offer = {"id": MODEL_ID, "path": str(DEMO_MODEL), "payment_per_token": "0.0001"}
    settings = make_settings(models=[offer | {"min_nodes": 4}])
    async with open_gateway(settings) as gateway:
        await gateway.announce(*all_nodes())
        await gateway.deposit("1")
        assert not (await model_on_offer(gateway))["available"]
        refused = await gateway.client.post(GENERATE, json=request_body(), headers=ASYNC)
        assert "4 healthy nodes" in problem(refused, 503, "no_route")["detail"]
        assert await skips_of(gateway.redis, "node_0") == {"too_few_nodes": 1}
        await gateway.announce(node(2, node_id="another"))
        assert (await model_on_offer(gateway))["available"]
        await gateway.submit()


async def know(gateway: Gateway, *nodes: Node) -> None:
    """The nodes' rows in Postgres, half of whose time they have been up."""
    then = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
    async with gateway.sessions.begin() as db:
        for each in nodes:
            db.add(
                RegisteredNode(
                    node_id=each.node_id,
                    wallet_address=each.wallet_address,
                    model_id=each.model_id,
                    start_layer=each.start_layer,
                    end_layer=each.end_layer,
                    registered_at=then,
                    uptime_seconds=3600,
                    last_seen=dt.datetime.now(dt.UTC),
                )
            )


async def earnings(gateway: Gateway, wallet: str) -> dict[str, object]:
    answer = await gateway.client.get(f"/api/nodes/earnings/{wallet}")
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


async def test_earnings_are_the_ledgers(gateway: Gateway) -> None:
    """Two nodes of one provider and one of another serve ten tokens for 0.001 FAR, and their prompt
    of twelve for 0.00012."""
    nodes = [node(0), node(1), node(2, wallet_address=OTHER_WALLET)]
    await gateway.announce(*nodes)
    await know(gateway, *nodes)
    job = await gateway.submit(max_tokens=10)
    await job.write(*"abcdefghij")
    await job.complete()

    first, second = [await earnings(gateway, each) for each in (PROVIDER_WALLET, OTHER_WALLET)]
    fee = await gateway.balance(ledger.owed(ledger.PLATFORM))
    assert fee == Decimal("0.000056")
    owed = [Decimal(str(each["pending_payout_far_exact"])) for each in (first, second)]
    assert sum(owed) + fee == Decimal("0.00112")
    assert owed[0] == await gateway.balance(ledger.owed(PROVIDER_WALLET))
    assert owed[0] > 2 * owed[1]  # twice the layers, and the edge
    assert first == {
        "wallet_address": PROVIDER_WALLET,
        "total_earned_far": float(owed[0]),
        "total_earned_far_exact": first["pending_payout_far_exact"],
        "total_tokens_served": 20,
        "active_nodes": 2,
        "avg_uptime_percent": pytest.approx(50, abs=1),
        "pending_payout_far": float(owed[0]),
        "pending_payout_far_exact": first["pending_payout_far_exact"],
        "earnings_history": [
            {"date": dt.datetime.now(dt.UTC).date().isoformat(), "amount_far": float(owed[0])}
        ],
    }
    assert (second["total_tokens_served"], second["active_nodes"]) == (10, 1)


async def test_what_was_paid_is_no_longer_pending(gateway: Gateway) -> None:
    await know(gateway, node(0))
    job = await gateway.submit()
    await job.write("a", "b")
    await job.complete()
    before = await earnings(gateway, PROVIDER_WALLET)
    amount = await gateway.balance(ledger.owed(PROVIDER_WALLET))
    async with gateway.sessions.begin() as db:
        await ledger.settle(db, batch="batch", amounts={PROVIDER_WALLET: amount})
    after = await earnings(gateway, PROVIDER_WALLET)
    assert after["pending_payout_far_exact"] == "0"
    assert after["total_earned_far_exact"] == before["total_earned_far_exact"]
    assert after["earnings_history"] == before["earnings_history"]


async def test_earnings_by_day_go_from_old_to_new(gateway: Gateway) -> None:
    """A day's earnings are one line; a year ago is not listed any more."""
    noon = dt.datetime.now(dt.UTC).replace(hour=12) - dt.timedelta(days=1)
    for tokens, days_ago in [(1, 0), (2, 3), (3, 3), (4, 365)]:
        job = await gateway.submit(max_tokens=tokens)
        await job.write(*"abcd"[:tokens])
        await job.complete()
        async with gateway.sessions.begin() as db:
            row = await db.merge(await job.row())
            row.completed_at = noon - dt.timedelta(days=days_ago)
    history = (await earnings(gateway, PROVIDER_WALLET))["earnings_history"]
    per_token, prompt = 0.0001 * 0.95, 0.00012 * 0.95
    assert history == [
        {
            "date": (noon - dt.timedelta(days=days_ago)).date().isoformat(),
            "amount_far": pytest.approx(tokens * per_token + jobs * prompt),
        }
        for tokens, jobs, days_ago in [(5, 2, 3), (1, 1, 0)]
    ]


@pytest.mark.parametrize("wallet", [WALLET, "0x" + "AB" * 20])
async def test_a_wallet_that_earned_nothing(empty_gateway: Gateway, wallet: str) -> None:
    found = await earnings(empty_gateway, wallet)
    assert found["wallet_address"] == wallet.lower()
    assert found["total_earned_far_exact"] == found["pending_payout_far_exact"] == "0"
    assert (found["total_tokens_served"], found["active_nodes"]) == (0, 0)
    assert (found["avg_uptime_percent"], found["earnings_history"]) == (0, [])


@pytest.mark.parametrize("wallet", ["0x12", "%00", "platform", "0x" + "g" * 40])
async def test_earnings_of_what_is_no_wallet(empty_gateway: Gateway, wallet: str) -> None:
    answer = await empty_gateway.client.get(f"/api/nodes/earnings/{wallet}")
    problem(answer, 422, "wallet_address_malformed")
