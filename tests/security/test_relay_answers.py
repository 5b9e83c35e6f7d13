"""A node asks for its work again and again and does not read it, so that the answers rest here."""

import contextlib
import socket
import time
from collections.abc import Callable

import httpx
import pytest
import redis
from prometheus_client import REGISTRY

from api.relay.quotas.connection_slots import MAX_PER_NODE
from market.settings import Settings
from mesh import relay
from mesh.relay import Hello, Poll, Welcome
from tests.support.gateway.relay import (
    PATIENCE,
    Node,
    Replica,
    bearer,
    put,
    replica,
    steps,
    wait_until,
)

LONG = steps(rows=512, wanted=0, width=2048)
"""Four megabytes: more than the kernel's buffers of both sides."""


def polling(at: Replica, node_id: str) -> bytes:
    """The body by which a node asks for all that is in its inbox."""
    url, headers = at.url + relay.EXCHANGE_PATH, bearer(at.token(node_id))
    hello = relay.bundle([relay.encode(Hello(relay.VERSION, "session", "0-0"))])
    answer = httpx.post(url, content=hello, headers=headers, timeout=PATIENCE)
    [welcome] = map(relay.decode, relay.unbundle(answer.content))
    assert isinstance(welcome, Welcome)
    return relay.bundle([relay.encode(Poll(welcome.connection, "session", "0-0", 1000))])


def ask(at: Replica, node_id: str, body: bytes) -> socket.socket:
    """A request whose answer nobody reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", at.port))
    lines = [
        f"POST {relay.EXCHANGE_PATH} HTTP/1.1",
        "Host: relay",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in bearer(at.token(node_id)).items()),
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def test_an_answer_that_is_not_read_counts_as_a_request(here: Replica, client: redis.Redis) -> None:
    put(client, "middle", LONG)
    body = polling(here, "middle")
    with contextlib.ExitStack() as several:
        for number in range(1, MAX_PER_NODE + 1):
            several.enter_context(ask(here, "middle", body))
            wait_until(lambda number=number: here.transfer_bytes >= number * len(LONG.data))
        with ask(here, "middle", body) as refused:
            assert b" 429 " in refused.recv(2**10)
        assert here.transfer_bytes < (MAX_PER_NODE + 1) * len(LONG.data)
    wait_until(lambda: here.transfer_bytes == 0)


@pytest.mark.parametrize(
    "limits",
    [
        {"transfer_grace": 0.5, "transfer_rate": 2**30},
        {"transfer_seconds": 0.5},
        {"max_transfer_bytes": 2**20},
    ],
    ids=["least rate", "deadline", "budget"],
)
def test_an_answer_that_is_not_read_is_given_up(
    make_settings: Callable[..., Settings], client: redis.Redis, limits: dict[str, float]
) -> None:
    put(client, "middle", LONG)
    with replica(make_settings(limits=limits)) as here:
        body = polling(here, "middle")
        with ask(here, "middle", body):
            wait_until(lambda: here.transfer_bytes == 0)
            wait_until(lambda: free(here, body))


def free(at: Replica, body: bytes) -> bool:
    """Whether all the node's slots are free."""
    with contextlib.ExitStack() as several:
        asked = [several.enter_context(ask(at, "middle", body)) for _ in range(MAX_PER_NODE)]
        return not any(is_refused(each) for each in asked)


def is_refused(connection: socket.socket) -> bool:
    return b" 429 " in connection.recv(2**10)


def test_a_delivery_that_is_not_read_ends_the_connection(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    put(client, "middle", *[LONG] * 8)
    settings = make_settings(limits={"transfer_seconds": 1.0})
    with replica(settings) as here, Node(here, "middle", after="0-0"):
        wait_until(lambda: here.transfer_bytes >= len(LONG.data))
        wait_until(lambda: here.transfer_bytes == 0)
        began = time.monotonic()
        wait_until(lambda: REGISTRY.get_sample_value("far_relay_connections") == 0)
        assert time.monotonic() - began < settings.relay.idle / 2


def test_of_long_messages_few_are_read_at_once(here: Replica, client: redis.Redis) -> None:
    put(client, "middle", *[LONG] * 8)
    most = 0
    with Node(here, "middle", after="0-0") as node:
        for _ in range(8):
            most = max(most, here.transfer_bytes)
            assert node.read() == [LONG]
    assert most < 2 * len(LONG.data)
