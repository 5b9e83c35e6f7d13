"""A connection from keep-alive to keep-alive, and how it ends."""

import contextlib
import socket
import time
from collections.abc import Callable

import httpx
import pytest
import redis
from prometheus_client import REGISTRY
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.relay.quotas.connection_slots import MAX_PER_NODE
from market.settings import Settings
from mesh import redis_keys, relay
from mesh.relay import (
    KeepAlive,
    KeepAliveAck,
    OutgoingMessage,
    Push,
    PushAck,
)
from tests.support.gateway.api import WALLET
from tests.support.gateway.relay import (
    PATIENCE,
    Node,
    Replica,
    bearer,
    dial,
    on_route,
    put,
    replica,
    steps,
    wait_until,
)


def test_a_keep_alive_records_free_kv_and_expires_soon(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        node.keep_alive(free_kv=640)
        assert client.get(redis_keys.keepalive("middle")) == b"640"
        assert 0 < client.pttl(redis_keys.keepalive("middle")) <= 1000
        began = time.monotonic()
        wait_until(
            lambda: not client.exists(redis_keys.keepalive("middle"))
        )  # the process is frozen
        assert time.monotonic() - began < 1.5
        node.keep_alive(free_kv=1)
        assert client.get(redis_keys.keepalive("middle")) == b"1"


def test_a_node_that_says_goodbye_is_gone_at_once(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        node.keep_alive()
        client.persist(redis_keys.keepalive("middle"))
    wait_until(lambda: not client.exists(redis_keys.keepalive("middle")))


def revoke(here: Replica, machine_id: str) -> None:
    headers = bearer(here.token(WALLET, "user"))
    answer = httpx.delete(f"{here.url}/api/machines/{machine_id}", headers=headers)
    assert answer.status_code == 204


def test_a_machine_that_is_revoked_loses_its_connections(
    here: Replica, client: redis.Redis
) -> None:
    """Whether it sends keep-alives or not, and whatever waits for it."""
    with Node(here, "revoked-1") as quiet, Node(here, "revoked-2") as busy, Node(here, "edge"):
        busy.keep_alive()
        for node_id in ("revoked-1", "revoked-2"):
            here.let_in("machine_1", node_id)
        revoke(here, "machine_1")
        assert not client.exists(redis_keys.keepalive("revoked-2"))
        put(client, "revoked-1", steps())
        busy.send(KeepAlive(8, 1, ""))
        for node in (busy, quiet):
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    node.socket.recv(timeout=PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == relay.SUPERSEDED
        # Nor does it come back: neither by its token, nor as one that was just admitted.
        with pytest.raises(InvalidStatus) as refused:
            dial(here, "revoked-1")
        assert refused.value.response.status_code == 401
        newest = client.hgetall(redis_keys.relay_connection("revoked-1"))
        assert newest[b"registration"] == b"2"
        assert client.ttl(redis_keys.relay_connection("revoked-1")) > 24 * 3600


def test_the_newest_connection_supersedes_the_others(
    here: Replica, settings: Settings, client: redis.Redis
) -> None:
    with replica(settings) as there, Node(here, "middle") as first:
        first.keep_alive(free_kv=1)
        with Node(there, "middle") as second:
            first.send(KeepAlive(1, 2, first.after))
            with pytest.raises(ConnectionClosed) as closed:
                first.receive(KeepAliveAck)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == relay.SUPERSEDED
            assert client.get(redis_keys.keepalive("middle")) == b"1"
            second.keep_alive(free_kv=3)
            assert client.get(redis_keys.keepalive("middle")) == b"3"


def test_a_half_open_connection_is_closed(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.2})
    with (
        replica(impatient) as here,
        Node(here, "middle") as node,
        pytest.raises(ConnectionClosed),
    ):
        node.receive(KeepAliveAck)


def test_who_talks_without_keep_alives_is_half_open(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.5})
    with replica(impatient) as here, Node(here, "middle") as node:
        began = time.monotonic()
        with pytest.raises(ConnectionClosed) as closed:
            while time.monotonic() - began < PATIENCE:
                node.push()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == relay.TRY_AGAIN_LATER


def test_the_pieces_of_a_long_frame_are_signs_of_life(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.5})
    long = relay.encode(Push(1, [OutgoingMessage("middle", b"", bytes(8 * relay.CHUNK_BYTES))]))
    on_route(client, "edge")
    with replica(impatient) as here, Node(here, "edge") as node:
        for message in relay.chunks(long):
            node.socket.send(message)
            time.sleep(0.1)
        assert node.receive(PushAck).number == 1


def test_a_superseded_connection_ends_although_it_sends_no_keep_alives(
    here: Replica, settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.relay.websocket.OWNER_CHECK_SECONDS", 0.1)
    with replica(settings) as there, Node(here, "middle") as first, Node(there, "middle"):
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(100):
                first.push()
                time.sleep(0.05)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == relay.SUPERSEDED


def test_a_node_has_few_connections_at_once(here: Replica, client: redis.Redis) -> None:
    with contextlib.ExitStack() as several:
        for _ in range(MAX_PER_NODE):
            several.enter_context(dial(here, "middle"))
        with pytest.raises(InvalidStatus) as refused:
            dial(here, "middle")
        assert refused.value.response.status_code == 429
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        with Node(here, "edge") as other:
            other.keep_alive()
    wait_until(lambda: opens(here, "middle"))


def test_a_process_serves_so_many_nodes_and_no_more(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    small = make_settings(relay={"max_connections": 2})
    with replica(small) as here, Node(here, "edge"), Node(here, "middle") as middle:
        with pytest.raises(InvalidStatus) as refused:
            dial(here, "last")
        assert refused.value.response.status_code == 503
        url, headers = here.url + relay.EXCHANGE_PATH, bearer(here.token("last"))
        assert httpx.post(url, content=b"", headers=headers).status_code == 503
        middle.socket.close()
        wait_until(lambda: opens(here, "last"))


def opens(at: Replica, node_id: str) -> bool:
    with contextlib.suppress(InvalidStatus), dial(at, node_id):
        return True
    return False


def test_who_takes_nothing_in_does_not_stay(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 0.5})
    with replica(impatient) as here, Node(here, "middle") as node:
        wait_until(lambda: connections() == 1)
        put(client, "middle", *[steps(rows=256, wanted=0, width=1024)] * 40)
        wait_until(lambda: connections() == 0)
        node.socket.socket.shutdown(socket.SHUT_RDWR)  # it would wait for what it did not read


def connections() -> float | None:
    return REGISTRY.get_sample_value("far_relay_connections")


def test_redis_may_forget_everything(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle") as node:
        node.keep_alive(free_kv=1)
        client.flushall()
        node.keep_alive(free_kv=2)
        assert client.get(redis_keys.keepalive("middle")) == b"2"
