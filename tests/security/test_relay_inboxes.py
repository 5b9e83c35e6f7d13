"""Nodes let their inboxes fill up, each below what one may hold, until Redis is full, or does
nothing but measure them."""

import time
from collections.abc import Callable

import redis

from market.settings import Settings
from mesh import redis_keys
from mesh.route_record import RouteRecord
from tests.support.gateway.relay import (
    Node,
    begin,
    inbox,
    on_route,
    put,
    replica,
    steps,
    wait_until,
)

WIDTH = 4096
LONG = {"rows": 8, "wanted": 0, "width": WIDTH}
"""A step of 128 KiB."""


def all_inboxes(client: redis.Redis) -> int:
    """Bytes of all inboxes, as Redis counts them."""
    keys = client.keys("node:*:inbox")
    return sum(client.memory_usage(key, samples=0) or 0 for key in keys)


def fill(client: redis.Redis, node: Node, number: int, times: int) -> None:
    """Send a node of a generation of its own, which never reads, some long steps."""
    name, receiver = f"gen_{number}", f"reader_{number}"
    record = RouteRecord(WIDTH, 100_000, [node.node_id, receiver]).pack()
    client.hset(redis_keys.live_record(name), mapping={"epoch": 1, "route": record})
    for _ in range(times):
        assert node.push((receiver, steps(name=name, **LONG))).refused == []


def test_inboxes_that_nobody_reads_have_one_limit(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    limit, most = 2**23, 0
    settings = make_settings(relay={"max_inboxes_bytes": limit, "max_inbox_bytes": 2**30})
    on_route(client, "edge")
    with replica(settings) as here, Node(here, "edge") as node:
        for number in range(24):
            fill(client, node, number, times=8)  # a megabyte each
            most = max(most, all_inboxes(client))
    assert most < 1.25 * limit
    assert all_inboxes(client) > 0.5 * limit


def test_the_sum_is_right_whoever_measures(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    settings = make_settings(relay={"max_inboxes_bytes": 2**26, "max_inbox_bytes": 2**21})
    on_route(client, "one", "two")
    with (
        replica(settings) as here,
        replica(settings) as there,
        Node(here, "one") as one,
        Node(there, "two") as two,
    ):
        for number in range(40):
            fill(client, (one, two)[number % 2], number % 5, times=4)
    sizes = client.zrange(redis_keys.INBOX_SIZES, 0, -1, withscores=True)
    assert sum(size for _, size in sizes) == int(client.get(redis_keys.INBOXES_TOTAL) or 0)


def test_the_longest_is_emptied_unless_it_is_read(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    """What was long when it was measured, and has been read since, takes nobody's place."""
    settings = make_settings(relay={"max_inboxes_bytes": 2**22, "max_inbox_bytes": 2**30})
    on_route(client, "edge")
    with replica(settings) as here, Node(here, "edge") as node:
        fill(client, node, 0, times=20)  # 2.5 MB
        fill(client, node, 0, times=1)
        client.xtrim(redis_keys.inbox("reader_0"), maxlen=1)  # it has read the rest
        fill(client, node, 1, times=16)  # 2 MB
        assert len(inbox(client, "reader_0")) == 1
        assert len(inbox(client, "reader_1")) == 16
        fill(client, node, 2, times=20)
        assert len(inbox(client, "reader_0")) == 1
        assert all_inboxes(client) < 1.25 * 2**22


def test_a_node_that_is_there_and_does_not_read_counts(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    """Also for what others than the relay wrote."""
    limit = 2**22
    settings = make_settings(relay={"max_inboxes_bytes": limit, "max_inbox_bytes": 2**30})
    with (
        replica(settings) as here,
        Node(here, "one") as one,
        Node(here, "two") as two,
    ):
        put(client, "one", *[steps(**LONG)] * 18)
        one.keep_alive()
        put(client, "two", *[steps(**LONG)] * 20)
        two.keep_alive()
        assert len(inbox(client, "two")) == 0
        assert len(inbox(client, "one")) == 18


def test_what_is_gone_does_not_count(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    settings = make_settings(relay={"max_inboxes_bytes": 2**22, "max_inbox_bytes": 2**30})
    on_route(client, "edge")
    with replica(settings) as here, Node(here, "edge") as node:
        fill(client, node, 0, times=20)
        assert client.zscore(redis_keys.INBOX_SIZES, "reader_0")
        client.delete(redis_keys.inbox("reader_0"))
        client.zadd(redis_keys.INBOX_EXPIRIES, {"reader_0": int(time.time()) - 1})
        fill(client, node, 1, times=16)
        assert client.zscore(redis_keys.INBOX_SIZES, "reader_0") is None
        assert len(inbox(client, "reader_1")) == 16


def test_an_inbox_ends_soon_after_its_node(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    begin(client)
    settings = make_settings()
    with replica(settings) as here, Node(here, "edge") as edge:
        with Node(here, "middle") as middle:
            middle.keep_alive()
            edge.push(("middle", steps()))
            assert client.ttl(redis_keys.inbox("middle")) > 3000
            middle.keep_alive()  # it has not read it
            assert client.ttl(redis_keys.inbox("middle")) <= 120
            middle.read()
            middle.keep_alive()
            assert client.ttl(redis_keys.inbox("middle")) > 3000
        edge.push(("middle", steps()))
        wait_until(lambda: not client.exists(redis_keys.keepalive("last")))
        begin(client, name="other", route=["edge", "away"])
        edge.push(("away", steps(name="other")))
        assert 0 < client.ttl(redis_keys.inbox("away")) <= 120


def calls(client: redis.Redis, command: str) -> int:
    """How often Redis has done a command, in scripts too."""
    stats = client.info("commandstats").items()
    return sum(each["calls"] for name, each in stats if name.startswith(f"cmdstat_{command}"))


def test_a_long_inbox_is_not_measured_with_each_keep_alive(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    with replica(make_settings()) as here, Node(here, "middle") as node:
        put(client, "middle", *[steps(**LONG)] * 16)  # two megabytes
        before, began = calls(client, "memory"), time.monotonic()
        for _ in range(15):
            node.keep_alive()
        seconds = time.monotonic() - began
        assert 1 <= calls(client, "memory") - before <= 1 + seconds


def test_keep_alives_without_end_are_answered_and_not_recorded(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    with replica(make_settings()) as here, Node(here, "middle") as node:
        put(client, "middle", steps())
        before, began = calls(client, "xlen"), time.monotonic()
        for _ in range(300):
            node.keep_alive()
        seconds = time.monotonic() - began
        # Two of them with each that is recorded, as the inbox has something unread.
        assert calls(client, "xlen") - before <= 2 * (20 + 10 * seconds + 1)
        assert client.exists(redis_keys.keepalive("middle"))
