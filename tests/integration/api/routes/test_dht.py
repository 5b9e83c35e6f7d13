"""What the API says of the DHT, and what it gives a node that joins it."""

import asyncio
import time
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from market.dht import directory
from market.settings import Settings
from market.settings.discovery import DiscoverySettings
from mesh import redis_keys
from mesh.dht import records
from mesh.dht.signing_keys import SigningKey
from tests.conftest import MODEL_ID
from tests.support.api import LAYERS, PROVIDER_WALLET, Gateway, node, open_gateway
from tests.support.dht import NODE_KEY, OPERATOR, announcement

PEER = "/dns4/dht.example.org/tcp/31337/p2p/QmQX571R7LBGYFJVz1qyZu7ANrpTtSXxN9gUDLaMzCTLYi"


async def register(gateway: Gateway, **changes: object) -> dict[str, object]:
    """The platform's answer to a node of a machine that was let in."""
    body = {
        "wallet_address": PROVIDER_WALLET,
        "model_id": MODEL_ID,
        "gpu_model": "CPU",
        "vram_gb": 0,
        "public_addr": "192.0.2.1:31330",
        "location": "EU",
    }
    answer = await gateway.client.post(
        "/api/nodes/register-distributed",
        json=body | changes,
        headers=await gateway.machine(PROVIDER_WALLET),
    )
    found: dict[str, object] = answer.json()
    assert answer.status_code == (422 if "code" in found else 200), found
    return found


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(discovery={"dht_operator_key": OPERATOR.seed, "dht_bootstrap": PEER})


async def test_who_proves_a_wallet_gets_a_credential_for_his_key(
    settings: Settings, redis: object
) -> None:
    async with open_gateway(settings) as gateway:
        joined = await register(gateway, dht_key=NODE_KEY.public.hex())
        access = joined["dht"]
        assert isinstance(access, dict)
        assert access["operator_key"] == OPERATOR.public.hex()
        assert access["peers"] == [PEER]
        announced = announcement(node_id=joined["node_id"], end_layer=LAYERS)
        record = records.sign_announcement(NODE_KEY, bytes.fromhex(access["credential"]), announced)
        assert records.read_announcement(record, OPERATOR.public) == announced
        assert "dht" not in await register(gateway)
        refusal = await register(gateway, dht_key="0x12")
        assert refusal["code"] == "dht_key_malformed"


async def test_without_an_operators_key_there_is_no_dht(
    make_settings: Callable[..., Settings], redis: object
) -> None:
    async with open_gateway(make_settings()) as gateway:
        assert "dht" not in await register(gateway, dht_key=NODE_KEY.public.hex())
        found = (await gateway.client.get("/api/discovery/dht")).json()
        assert found == {"operator_key": None, "peers": []}


async def test_addresses_of_our_peers_are_not_kept_beyond_their_time(redis: Redis) -> None:
    await directory.record_peers(redis, ["old"], ttl=0.001)
    await asyncio.sleep(0.01)
    assert not await redis.exists(redis_keys.DHT_PEERS)
    await redis.hset(redis_keys.DHT_PEERS, "old", time.time() - 1)  # type: ignore[misc]
    for address in ("one", "another"):
        await directory.record_peers(redis, [address], ttl=60)
    assert await redis.hkeys(redis_keys.DHT_PEERS) == [b"one", b"another"]  # type: ignore[misc]
    assert 50 < await redis.ttl(redis_keys.DHT_PEERS) <= 60
    assert await directory.running_peers(redis) == ["another", "one"]


async def test_the_phonebook_says_who_is_on_the_routes(settings: Settings, redis: object) -> None:
    async with open_gateway(settings) as gateway:
        other = "/ip4/192.0.2.7/tcp/31337/p2p/QmOther"
        await directory.record_peers(gateway.redis, [other], ttl=60)
        found = (await gateway.client.get("/api/discovery/dht")).json()
        assert found == {"operator_key": OPERATOR.public.hex(), "peers": sorted([PEER, other])}
        await gateway.announce(node(0))
        announced = [announcement(), announcement(node_id="node_9", start_layer=2, end_layer=4)]
        gone = announcement(node_id="node_8", expires=time.time() - 1)
        await directory.write_announcements(gateway.redis, MODEL_ID, [*announced, gone])
        page = (await gateway.client.get(f"/api/discovery/dht/{MODEL_ID}")).json()
        assert page["total_nodes"] == 2
        assert [(each["node_id"], each["on_routes"]) for each in page["nodes"]] == [
            ("node_0", True),
            ("node_9", False),
        ]
        assert page["nodes"][1]["layers_served"] == [2, 3]
        assert (await gateway.client.get("/api/discovery/dht/nobodys")).status_code == 404


def test_a_bootstrap_peer_is_named_with_its_id() -> None:
    assert DiscoverySettings.model_validate({"dht_bootstrap": f"{PEER}, {PEER}"}).dht_bootstrap
    for address in ("far-discovery.farlabs.ai:31337", "/ip4/192.0.2.7/tcp/31337"):
        with pytest.raises(ValueError, match="print-peers"):
            DiscoverySettings.model_validate({"dht_bootstrap": address})


async def test_a_seed_that_is_none_is_refused_at_start(
    make_settings: Callable[..., Settings], redis: object
) -> None:
    settings = make_settings(discovery={"dht_operator_key": SigningKey.generate().seed[:-2]})
    with pytest.raises(ValueError, match="32 bytes in hex"):
        async with open_gateway(settings):
            pass
