"""What nodes are sent: read by cursor, resumed, trimmed and bounded."""

import socket
from collections.abc import Callable

import msgpack
import pytest
import redis

from api.relay.forwarder import MAX_EVENTS_PER_GENERATION
from market.settings import Settings
from mesh import redis_keys, relay
from mesh.relay import (
    InboxDelivery,
)
from mesh.wire import (
    Pong,
)
from tests.support.gateway.relay import (
    CAPACITY,
    Node,
    Replica,
    begin,
    inbox,
    on_route,
    put,
    replica,
    steps,
    wait_until,
)


def test_a_node_reads_its_own_inbox_only(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        put(client, "last", steps(name="private"))
        put(client, "middle", steps())
        assert node.read() == [steps()]


def test_work_wakes_a_node_that_waits_at_another_replica(
    here: Replica, settings: Settings, client: redis.Redis
) -> None:
    begin(client)
    with replica(settings) as there, Node(here, "edge") as edge, Node(there, "middle") as middle:
        edge.push(("middle", steps()))
        assert middle.read() == [steps()]


def test_long_messages_travel_in_pieces(here: Replica, client: redis.Redis) -> None:
    begin(client)
    client.hset(redis_keys.live_record("gen"), "route", wide_route())
    on_route(client, "edge")
    long = steps(rows=64, wanted=0, width=4096)
    assert len(long.data) > 4 * relay.CHUNK_BYTES
    with Node(here, "edge") as edge, Node(here, "middle") as middle:
        assert edge.push(("middle", long)).refused == []
        assert middle.read() == [long]


def wide_route(capacity: int = CAPACITY) -> bytes:
    return bytes(msgpack.packb([4096, capacity, ["edge", "middle", "last"]]))


def test_a_connection_resumes_at_its_cursor_at_another_replica(
    here: Replica, settings: Settings, client: redis.Redis
) -> None:
    with Node(here, "middle") as node:
        put(client, "middle", steps(), steps(position=1))
        read = node.read()
        while len(read) < 2:
            read += node.read()
        put(client, "middle", steps(position=2))
        wait_until(lambda: node.receive(InboxDelivery))  # it is lost on the way
        node.socket.socket.shutdown(socket.SHUT_RDWR)
    with replica(settings) as there, Node(there, "middle", after=node.after) as again:
        assert again.read() == [steps(position=2)]


def test_the_relay_knows_which_push_was_the_last(
    here: Replica, settings: Settings, client: redis.Redis
) -> None:
    begin(client)
    with Node(here, "edge", session="one") as node:
        node.push(("middle", steps()))
        node.push(("middle", steps(position=1)))
    with replica(settings) as there:
        with Node(there, "edge", session="one") as again:
            assert again.welcome.number == 2
        with Node(there, "edge", session="other") as other:
            assert other.welcome.number == 0


def test_what_was_read_is_trimmed_and_nothing_else(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        put(client, "middle", steps())
        node.keep_alive()
        assert client.xlen(redis_keys.inbox("middle")) == 1
        node.read()
        put(client, "middle", steps(position=1))
        node.keep_alive()
        assert inbox(client, "middle") == [steps(position=1)]
        assert client.ttl(redis_keys.inbox("middle")) > 0


def test_an_inbox_that_nobody_reads_does_not_fill_redis(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    small = make_settings(relay={"max_inbox_bytes": 2**20})
    with replica(small) as here, Node(here, "middle") as node:
        put(client, "middle", *(steps(rows=128, wanted=0, width=1024) for _ in range(4)))
        node.keep_alive()
        assert client.xlen(redis_keys.inbox("middle")) == 0


def test_an_inbox_does_not_fill_redis_though_its_node_is_away(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    begin(client)
    client.hset(redis_keys.live_record("gen"), "route", wide_route(8 * 80))
    on_route(client, "edge")
    client.xadd(redis_keys.inbox("middle"), {"h": b"short"})  # by which Redis estimates the others
    limit, lengths = 2**22, []
    with (
        replica(make_settings(relay={"max_inbox_bytes": limit})) as here,
        Node(here, "edge") as node,
    ):
        for _ in range(80):
            assert node.push(("middle", steps(rows=8, wanted=0, width=4096))).refused == []
            lengths.append(client.memory_usage(redis_keys.inbox("middle"), samples=0))
    assert 0.9 * limit < max(lengths) < 1.2 * limit


def test_an_inbox_is_not_taken_for_longer_than_it_is(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    with (
        replica(make_settings(relay={"max_inbox_bytes": 2**21})) as here,
        Node(here, "middle") as node,
    ):
        long = steps(rows=512, wanted=0, width=512)
        put(client, "middle", long, *(steps(rows=2, wanted=0, width=700) for _ in range(20)))
        estimate = client.memory_usage(redis_keys.inbox("middle"), samples=1)
        assert estimate > 2**21 > client.memory_usage(redis_keys.inbox("middle"), samples=0)
        node.keep_alive()
        assert client.xlen(redis_keys.inbox("middle")) == 21


def test_a_generation_keeps_so_many_events(
    here: Replica, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay.quotas.message_counts.EVENT_BURST", 10_000)
    begin(client)
    pongs = [("", Pong("gen", 1, "middle", 5))] * 500
    with Node(here, "middle") as node:
        for _ in range(6):
            assert node.push(*pongs).refused == []
    assert (
        MAX_EVENTS_PER_GENERATION
        <= client.xlen(redis_keys.events("gen"))
        < 1.2 * MAX_EVENTS_PER_GENERATION
    )


def test_what_pushes_write_ends_one_day(here: Replica, client: redis.Redis) -> None:
    begin(client)
    with Node(here, "middle") as node:
        client.delete(redis_keys.relay_connection("middle"))
        node.push(("last", steps()), ("", Pong("gen", 1, "middle", 5)), ("edge", steps()))
    # The second step breaks the route's rules, which is an event for its supervisor.
    assert client.xlen(redis_keys.events("gen")) == 2
    for key in (
        redis_keys.relay_connection("middle"),
        redis_keys.inbox("last"),
        redis_keys.events("gen"),
    ):
        assert 0 < client.ttl(key) <= 3600, key
