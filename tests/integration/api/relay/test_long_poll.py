"""A node that polls: requests, their bodies and their number."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import redis

from api.relay.quotas.connection_slots import MAX_PER_NODE
from market.settings import Settings
from mesh import redis_keys, relay
from mesh.relay import (
    Frame,
    Hello,
    KeepAlive,
    KeepAliveAck,
    Poll,
    Push,
    PushAck,
    Superseded,
    Welcome,
)
from tests.support.gateway.api import WALLET
from tests.support.gateway.relay import (
    PATIENCE,
    Node,
    Replica,
    bearer,
    begin,
    inbox,
    outgoing,
    put,
    replica,
    steps,
    wait_until,
)


class Poller:
    """A node that uses long polls."""

    def __init__(self, at: Replica, node_id: str) -> None:
        self._http = httpx.Client(
            base_url=at.url, headers=bearer(at.token(node_id)), timeout=PATIENCE
        )
        [welcome] = self.post(Hello(relay.VERSION, "polling", ""))
        assert isinstance(welcome, Welcome)
        self.welcome = welcome

    def poll(self, *frames: Any, wait: int = 0, after: str = "") -> list[Any]:
        first = Poll(self.welcome.connection, "polling", after or self.welcome.after, wait)
        return self.post(first, *frames)

    def post(self, *frames: Any) -> list[Any]:
        body = relay.bundle(map(relay.encode, frames))
        answer = self._http.post(relay.EXCHANGE_PATH, content=body)
        assert answer.status_code == 200, answer.text
        return [relay.decode(frame) for frame in relay.unbundle(answer.content)]

    def close(self) -> None:
        self._http.close()


def test_a_node_works_by_long_polls(here: Replica, client: redis.Redis) -> None:
    begin(client)
    node = Poller(here, "middle")
    put(client, "middle", steps(), steps(position=1))
    [work] = node.poll(wait=1000)
    assert len(work.entries) == 2
    push = Push(1, [outgoing("last", steps()), outgoing("edge", steps())])
    accepted, kept_alive = node.poll(push, KeepAlive(5, 64, work.after))
    assert accepted == PushAck(1, [("gen", 1, "wrong_receiver")])
    assert kept_alive == KeepAliveAck(5)
    assert inbox(client, "last") == [steps()]
    assert client.get(redis_keys.keepalive("middle")) == b"64"
    assert node.poll(wait=50, after=work.after) == []
    with Node(here, "middle", session="polling") as again:
        assert again.welcome.number == 1
        assert node.poll(wait=50) == [Superseded()]
    node.close()


def test_a_poll_that_waits_while_its_machine_is_revoked_brings_no_work(
    here: Replica, client: redis.Redis
) -> None:
    node = Poller(here, "revoked-poller")
    here.let_in("machine_2", "revoked-poller")
    answers: list[Frame] = []

    def poll() -> None:
        while not answers:
            answers.extend(node.poll(wait=1000))

    waiting = threading.Thread(target=poll)
    waiting.start()
    headers = bearer(here.token(WALLET, "user"))
    revoked = httpx.delete(f"{here.url}/api/machines/machine_2", headers=headers)
    assert revoked.status_code == 204
    put(client, "revoked-poller", steps())
    waiting.join()
    assert answers == [Superseded()]
    assert node.poll(wait=50) == [Superseded()]
    node.close()


def test_a_body_is_read_up_to_a_limit(here: Replica, client: redis.Redis) -> None:
    headers = bearer(here.token("middle"))
    url = here.url + relay.EXCHANGE_PATH
    assert httpx.post(url, content=b"\xc1", headers=headers).json()["code"] == "wire_error"
    for frame in (KeepAlive(1, 1, ""), KeepAliveAck(1)):
        body = relay.bundle([relay.encode(frame)])
        assert httpx.post(url, content=body, headers=headers).status_code == 400
    large = bytes(relay.MAX_FRAME_BYTES + 1)
    assert httpx.post(url, content=large, headers=headers).json()["code"] == "body_too_large"


def test_a_node_has_few_requests_under_way(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    impatient = make_settings(relay={"idle": 2.0})
    with replica(impatient) as here, contextlib.ExitStack() as several:
        half = begun(here, "middle")
        for _ in range(MAX_PER_NODE):  # of each, half of the body is to come, and never does
            request = several.enter_context(socket.create_connection(("127.0.0.1", here.port)))
            request.sendall(half)
        url, headers = here.url + relay.EXCHANGE_PATH, bearer(here.token("middle"))

        def status() -> int:
            return httpx.post(url, content=b"\xc1", headers=headers).status_code

        wait_until(lambda: status() == 429)
        assert httpx.post(url, content=b"", headers=bearer(here.token("edge"))).status_code == 400
        wait_until(lambda: status() == 400)


def begun(at: Replica, node_id: str) -> bytes:
    lines = [
        f"POST {relay.EXCHANGE_PATH} HTTP/1.1",
        "Host: relay",
        f"Authorization: Bearer {at.token(node_id)}",
        "Content-Length: 2000",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + bytes(1000)
