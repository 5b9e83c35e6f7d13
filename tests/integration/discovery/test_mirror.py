"""The DHT with real peers: what strangers can do there, and what the registry takes from it."""

import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils.timed_storage import TimedStorage
from redis.asyncio import Redis
from sqlalchemy import update

from discovery.mirror import Mirror
from market import db
from market.dht import directory
from market.nodes import live_lookup, live_registry
from market.nodes.tables import RegisteredNode
from market.settings.discovery import DiscoverySettings
from mesh import redis_keys
from mesh.dht import records
from mesh.dht.peer import Peer
from stack.servers import free_port
from tests.conftest import MODEL_ID
from tests.support.api import PROVIDER_WALLET
from tests.support.dht import (
    OPERATOR,
    SPANS,
    STRANGER,
    announce,
    announcement,
    announcements_at,
    client,
    full_peer,
    record_of,
    soon,
)

URL = "https://mesh.example.org"


@pytest.fixture
async def refusals() -> list[str]:
    return []


@pytest.fixture
async def served(tmp_path: Path, refusals: list[str]) -> AsyncIterator[tuple[Peer, list[str]]]:
    async with full_peer(tmp_path, on_refused=refusals.append) as opened:
        yield opened


@pytest.fixture
def mirror(served: tuple[Peer, list[str]], redis: Redis, sessions: db.Sessions) -> Mirror:
    discovery = DiscoverySettings(trusted_wallets=[PROVIDER_WALLET])
    return Mirror(served[0], OPERATOR, redis, sessions, discovery, [MODEL_ID], URL)


async def register(sessions: db.Sessions, node_id: str = "node_0") -> None:
    """A node that has proved its wallet."""
    async with sessions.begin() as session:
        session.add(
            RegisteredNode(
                node_id=node_id,
                wallet_address=PROVIDER_WALLET,
                model_id=MODEL_ID,
                start_layer=0,
                end_layer=2,
                edge=True,
            )
        )


async def keep_alive(redis: Redis, node_id: str = "node_0") -> None:
    """Its process runs, for an hour."""
    await redis.set(redis_keys.keepalive(node_id), 512, ex=3600)


async def test_an_announcement_reaches_the_registry_and_expires(
    served: tuple[Peer, list[str]], mirror: Mirror, redis: Redis
) -> None:
    announced = announcement(expires=time.time() + 3)
    async with client(served[1]) as node:
        assert await announce(node, announced) == 1
    await mirror.run_once()
    assert await directory.read_announcements(redis, MODEL_ID) == [announced]
    assert await directory.running_peers(redis) == served[1]

    async def gone() -> bool:
        await mirror.run_once()
        return not await directory.read_announcements(redis, MODEL_ID)

    await soon(gone)
    assert time.time() >= announced.expires


async def test_who_has_not_registered_is_in_the_phonebook_and_on_no_route(
    served: tuple[Peer, list[str]], mirror: Mirror, redis: Redis
) -> None:
    await announce(served[0], announcement())
    await mirror.run_once()
    assert len(await directory.read_announcements(redis, MODEL_ID)) == 1
    assert await live_lookup.available_nodes(redis, MODEL_ID) == []


async def test_after_redis_lost_all_a_registered_node_is_back_on_the_routes(
    served: tuple[Peer, list[str]], mirror: Mirror, redis: Redis, sessions: db.Sessions
) -> None:
    await register(sessions)
    await announce(served[0], announcement())
    await mirror.run_once()
    await redis.flushall()
    await keep_alive(redis)
    await mirror.run_once()
    [node] = await live_lookup.available_nodes(redis, MODEL_ID)
    assert (node.node_id, node.wallet_address, node.layers_served) == (
        "node_0",
        PROVIDER_WALLET,
        [0, 1],
    )
    assert (node.edge, node.trusted, node.latency_ms, node.kv_positions) == (True, True, 7.0, 512)
    # What its heartbeat says afterwards is not written over.
    live = dataclasses.replace(node, latency_ms=1.0)
    await live_registry.put(redis, live, ttl=60)
    await mirror.run_once()
    assert await live_lookup.available_nodes(redis, MODEL_ID) == [live]


async def test_a_node_that_left_or_announces_another_span_stays_off_the_routes(
    served: tuple[Peer, list[str]], mirror: Mirror, redis: Redis, sessions: db.Sessions
) -> None:
    await register(sessions)
    await keep_alive(redis)
    await announce(served[0], announcement(end_layer=3))
    await mirror.run_once()
    assert await live_lookup.available_nodes(redis, MODEL_ID) == []
    await announce(served[0], announcement(expires=time.time() + 90))
    async with sessions.begin() as session:
        await session.execute(update(RegisteredNode).values(is_active=False))
    await mirror.run_once()
    assert await live_lookup.available_nodes(redis, MODEL_ID) == []
    assert len(await directory.read_announcements(redis, MODEL_ID)) == 1


async def test_a_dead_node_is_not_brought_back_by_what_it_announced(
    served: tuple[Peer, list[str]], mirror: Mirror, redis: Redis, sessions: db.Sessions
) -> None:
    """A supervisor saw that it gives no sign of life; its announcement holds for a minute more."""
    await register(sessions)
    await announce(served[0], announcement())
    await keep_alive(redis)
    await mirror.run_once()
    assert len(await live_lookup.available_nodes(redis, MODEL_ID)) == 1
    await redis.delete(redis_keys.keepalive("node_0"))
    await live_registry.evict(redis, "node_0", MODEL_ID)
    await mirror.run_once()
    assert await live_lookup.available_nodes(redis, MODEL_ID) == []


async def test_a_forged_record_is_refused(
    served: tuple[Peer, list[str]], refusals: list[str]
) -> None:
    async with client(served[1]) as stranger:
        assert await announce(stranger, announcement(), key=STRANGER, operator=STRANGER) == 0
        later = announcement(expires=time.time() + records.MAX_EXPIRY_AHEAD + 60)
        assert await announce(stranger, later) == 0
        announced = announcement()
        record = record_of(announced)
        misplaced = [(SPANS, "node_1"), ("far-mesh/spans/other", "node_0"), ("anything", "node_0")]
        for key, subkey in misplaced:
            assert await stranger.store(key, subkey, record, announced.expires) == 0
        assert await stranger.store(SPANS, "node_0", b"x" * 5000, announced.expires) == 0
    assert await announcements_at(served[0]) == {}
    assert refusals == ["signature", "expiry", "key", "key", "key", "size"]


async def test_nobody_replaces_or_prolongs_anothers_record(
    served: tuple[Peer, list[str]], refusals: list[str]
) -> None:
    announced = announcement()
    async with client(served[1]) as node, client(served[1]) as stranger:
        assert await announce(node, announced) == 1
        newer = announcement(expires=announced.expires + 30, end_layer=5)
        assert await announce(stranger, newer, key=STRANGER, operator=STRANGER) == 0
        assert (
            await stranger.store(SPANS, "node_0", record_of(announced), announced.expires + 30) == 0
        )
        assert refusals == ["signature", "expiry"]
        # An earlier record of the node's own is no forgery, but comes too late.
        assert await announce(stranger, announcement(expires=announced.expires - 30)) == 0
        assert await announcements_at(node) == {"node_0": announced}


async def test_a_value_without_a_subkey_does_not_hide_the_others(
    served: tuple[Peer, list[str]],
) -> None:
    announced = announcement()
    await announce(served[0], announced)
    stranger = await DHTNode.create(initial_peers=served[1], client_mode=True, strict=False)
    try:
        later = announcement(expires=announced.expires + 60)
        assert not await stranger.store(SPANS, record_of(later), later.expires)
    finally:
        await stranger.shutdown()
    assert await announcements_at(served[0]) == {"node_0": announced}


async def test_a_full_peer_that_lies_hides_nobody(served: tuple[Peer, list[str]]) -> None:
    """It answers with an empty dictionary, good for ever: hivemind's own reads would stop there."""
    announced = announcement()
    await announce(served[0], announced)
    liar = await DHTNode.create(
        initial_peers=served[1], strict=False, node_id=DHTID.generate(source=SPANS)
    )
    try:
        nothing, key_id = DictionaryDHTValue(), DHTID.generate(source=SPANS)
        TimedStorage.store(liar.protocol.storage, key_id, nothing, float("inf"))
        assert len(liar.protocol.storage) == 1
        async with client(served[1]) as node:
            assert await announcements_at(node) == {"node_0": announced}
            newer = announcement(expires=announced.expires + 30)
            assert await announce(node, newer) >= 1
        assert await announcements_at(served[0]) == {"node_0": newer}
    finally:
        await liar.shutdown()


async def test_only_the_operator_says_where_the_platform_is(
    served: tuple[Peer, list[str]], mirror: Mirror
) -> None:
    await mirror.run_once()
    async with client(served[1]) as node:
        false = records.PlatformEndpoints(
            ["https://evil.example"], time.time() + records.MAX_EXPIRY_AHEAD - 5
        )
        record = records.sign_endpoints(STRANGER, false)
        key, subkey = records.ENDPOINTS_KEY, records.ENDPOINTS_SUBKEY
        assert await node.store(key, subkey, record, false.expires) == 0
        assert await node.store(key, "another", record, false.expires) == 0
        found = await node.read(key)
        assert list(found) == [subkey]
        assert records.read_endpoints(found[subkey], OPERATOR.public).urls == [URL]


async def test_a_peer_comes_back_under_the_same_address(tmp_path: Path) -> None:
    port = free_port()
    async with full_peer(tmp_path, port=port) as (_, addresses):
        node = await Peer.join(OPERATOR.public, addresses)
        assert await announce(node, announcement()) == 1
    try:
        assert await announce(node, announcement(expires=time.time() + 70)) == 0
        async with full_peer(tmp_path, port=port) as (again, same):
            assert same == addresses
            announced = announcement(expires=time.time() + 80)

            async def taken() -> bool:
                return await announce(node, announced) == 1

            await soon(taken)
            assert await announcements_at(again) == {"node_0": announced}
    finally:
        await node.close()


async def test_of_several_peers_each_knows_what_was_told_to_one(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    async with (
        full_peer(tmp_path / "a") as (first, addresses),
        full_peer(tmp_path / "b", bootstrap=addresses) as (second, _),
        client(addresses) as node,
    ):
        announced = announcement()
        await announce(node, announced)
        for peer in (first, second):
            assert await announcements_at(peer) == {"node_0": announced}
