"""A node's way to its work over the relay: cut, blocked, and taken over."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import redis
import structlog
from structlog.testing import LogCapture

from market.jobs import live_session
from market.jobs.live_session import TokenEntry
from market.settings import Settings
from mesh import redis_keys
from mesh.wire import Ended, Message, StopEpoch, Token
from mesh.wire.logprobs import Logprob, pack_logprobs
from node_runner.outputs import NodeMessage
from node_runner.transport.interface import TransportUnreachable
from node_runner.transport.relay_transport import SILENCE_TIMEOUT, RelayTransport
from stack.servers import Postgres, free_port
from tests.support.gateway.api import shared_database
from tests.support.gateway.relay import (
    PATIENCE,
    WIDTH,
    Replica,
    begin,
    inbox,
    on_route,
    put,
    replica,
    steps,
    wait_until,
)
from tests.support.network.gate import Gate, gate, tunnel
from tests.support.network.tls import make_certificate

LARGE = 16 * 2**20 // (4 * WIDTH)
"""Rows of 16 MiB."""


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> Iterator[str]:
    with shared_database(postgres) as url:
        yield url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connected:
        connected.flushall()
        begin(connected)
        yield connected


@pytest.fixture
def settings(make_settings: Callable[..., Settings], client: redis.Redis) -> Settings:
    return make_settings()


@pytest.fixture
def here(settings: Settings) -> Iterator[Replica]:
    with replica(settings) as started:
        yield started


@pytest.fixture
def door(here: Replica) -> Iterator[Gate]:
    with gate(here.port) as made:
        yield made


def node(at: Replica, node_id: str, url: str = "", retry: float = 60.0) -> RelayTransport:
    return RelayTransport(url or at.url, at.token(node_id), lambda: 64, websocket_retry=retry)


def read(transport: RelayTransport, count: int) -> list[Message]:
    """So many messages, and those that came with them."""
    found: list[Message] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < deadline
        try:
            found += transport.exchange([], wait=0.2)
        except TransportUnreachable:
            continue
    return found


def push(transport: RelayTransport, position: int) -> list[Message]:
    """As a runner does: again, until it is taken. Returns what came meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return transport.exchange([NodeMessage("middle", steps(position=position))], wait=0)
        except TransportUnreachable:
            assert time.monotonic() < deadline


def test_a_push_wakes_a_node_that_waits(here: Replica, client: redis.Redis) -> None:
    with closing(node(here, "edge")) as sender, closing(node(here, "middle")) as receiver:
        received: list[list[Message]] = []
        waiting = threading.Thread(target=lambda: received.append(receiver.exchange([], wait=4)))
        waiting.start()
        sender.exchange([NodeMessage("middle", steps())], wait=0)
        waiting.join()
        assert received == [[steps()]]
        assert sender.connection_kind == receiver.connection_kind == "websocket"
        wait_until(lambda: sender.hop_ms > 0)
        assert client.get(redis_keys.keepalive("edge")) == b"64"
    wait_until(lambda: not client.exists(redis_keys.keepalive("edge")))


def test_what_is_too_late_comes_back_as_a_halt(here: Replica, client: redis.Redis) -> None:
    with closing(node(here, "edge")) as edge:
        late, due = Token("gen", 0, 0, 7, "late"), Token("gen", 1, 0, 7, "due")
        edge.exchange([late, due, NodeMessage("stranger", steps())], wait=0)
        assert sorted(read(edge, 2), key=lambda halt: halt.epoch) == [
            StopEpoch("gen", 0),
            StopEpoch("gen", 1),
        ]
    assert client.xlen(redis_keys.tokens("gen")) == 1


def test_log_probabilities_get_to_readers(here: Replica, client: redis.Redis) -> None:
    logprobs = pack_logprobs([Logprob(8, -0.5), Logprob(7, -0.25)])
    with closing(node(here, "edge")) as edge:
        edge.exchange([Token("gen", 1, 0, 8, "with", logprobs)], wait=0)
    assert live_session.entries_of(client.xrange(redis_keys.tokens("gen"))) == [
        TokenEntry("1-0", 8, "with", logprobs)
    ]


def test_the_last_words_arrive(here: Replica, client: redis.Redis) -> None:
    with closing(node(here, "edge")) as edge:
        edge.exchange([Ended("gen", 1, "stop", 0)], wait=0)
    assert client.xlen(redis_keys.events("gen")) == 1


@pytest.mark.parametrize("cut", ["silent", "forgotten", "severed", "the replica ends"])
def test_a_cut_loses_nothing_and_repeats_nothing(
    here: Replica, door: Gate, client: redis.Redis, settings: Settings, cut: str
) -> None:
    with replica(settings) as there, closing(node(here, "edge", door.url)) as edge:
        push(edge, 0)
        put(client, "edge", steps(position=50))
        read(edge, 1)
        came: list[Message] = []
        if cut == "silent":
            door.silence()
            put(client, "edge", steps(position=51))
            edge.exchange([NodeMessage("middle", steps(position=1))], wait=0)
            wait_until(lambda: not edge.connection_kind)  # within SILENCE_TIMEOUT
            door.resume()
        elif cut == "forgotten":  # by a home router: new connections get through
            door.forget()
            put(client, "edge", steps(position=51))
            edge.exchange([NodeMessage("middle", steps(position=1))], wait=0)
            wait_until(lambda: not edge.connection_kind)
        elif cut == "severed":
            door.sever()
            put(client, "edge", steps(position=51))
            came += push(edge, 1)
        else:
            door.target_port = there.port
            here.stop()
            put(client, "edge", steps(position=51))
            came += push(edge, 1)
        came += push(edge, 2)
        came += read(edge, 1 - len(came))
        assert came == [steps(position=51)]
        wait_until(lambda: len(inbox(client, "middle")) >= 3)
        push(edge, 3)
        wait_until(lambda: len(inbox(client, "middle")) >= 4)
        assert inbox(client, "middle") == [steps(position=position) for position in range(4)]
        put(client, "edge", steps(position=52))
        assert read(edge, 1) == [steps(position=52)]


def test_where_websockets_are_blocked_it_polls_and_tries_again(
    here: Replica, door: Gate, client: redis.Redis
) -> None:
    door.refuses_websockets = True
    with closing(node(here, "edge", door.url, retry=0.3)) as edge:
        assert edge.connection_kind == "long poll"
        for position in range(3):
            put(client, "edge", steps(position=position))
            assert read(edge, 1) == [steps(position=position)]
            push(edge, position)
        wait_until(lambda: client.get(redis_keys.keepalive("edge")) == b"64")
        wait_until(lambda: edge.hop_ms > 0)
        wait_until(lambda: door.upgrades >= 2)
        assert edge.connection_kind == "long poll"
        door.refuses_websockets = False
        wait_until(lambda: edge.connection_kind == "websocket")
        put(client, "edge", steps(position=3))
        assert read(edge, 1) == [steps(position=3)]
        push(edge, 3)
        wait_until(lambda: len(inbox(client, "middle")) == 4)
    assert inbox(client, "middle") == [steps(position=position) for position in range(4)]


def test_long_polls_that_a_router_forgets_begin_anew(
    here: Replica, door: Gate, client: redis.Redis
) -> None:
    door.refuses_websockets = True
    with closing(node(here, "edge", door.url)) as edge:
        push(edge, 0)
        put(client, "edge", steps(position=50))
        assert read(edge, 1) == [steps(position=50)]
        door.forget()
        put(client, "edge", steps(position=51))
        came = push(edge, 1)
        came += read(edge, 1 - len(came))
        assert came == [steps(position=51)]
        wait_until(lambda: len(inbox(client, "middle")) == 2)
        assert edge.connection_kind == "long poll"
    assert inbox(client, "middle") == [steps(position=position) for position in range(2)]


def test_while_the_relay_is_away_it_says_so(here: Replica, client: redis.Redis) -> None:
    with pytest.raises(TransportUnreachable, match="cannot be reached"):
        raise_at_once(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TransportUnreachable, match="401"):
        raise_at_once(here.url)


def raise_at_once(url: str) -> None:
    with impatient():
        RelayTransport(url, "no token", lambda: 0)


@contextmanager
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("node_runner.transport.relay_transport.START_TIMEOUT", 0.5)
        yield


def test_a_second_process_with_the_token_takes_over(here: Replica, client: redis.Redis) -> None:
    with closing(node(here, "edge")) as first, closing(node(here, "edge")) as second:
        wait_until(lambda: not first.connection_kind)
        put(client, "edge", steps())
        assert read(second, 1) == [steps()]
        with pytest.raises(TransportUnreachable, match="Another process"):
            first.exchange([], wait=0)


def test_a_silent_relay_is_noticed(here: Replica, door: Gate, client: redis.Redis) -> None:
    with closing(node(here, "edge", door.url)) as edge:
        door.silence()
        began = time.monotonic()
        wait_until(lambda: not edge.connection_kind)
        assert time.monotonic() - began < SILENCE_TIMEOUT + 3
        door.resume()


def test_a_relay_that_falls_silent_within_a_push_is_noticed(
    here: Replica, door: Gate, client: redis.Redis
) -> None:
    """One that fills all buffers on the way, so that sending it never ends."""
    on_route(client, "edge")
    with closing(node(here, "edge", door.url)) as edge:
        door.silence()
        began = time.monotonic()
        edge.exchange([NodeMessage("middle", steps(rows=LARGE))], wait=0)
        assert time.monotonic() - began < SILENCE_TIMEOUT + 3
        assert not edge.connection_kind
        door.resume()
        push(edge, 1)
        wait_until(lambda: steps(position=1) in inbox(client, "middle"))


@pytest.mark.parametrize("websockets", [True, False], ids=["websocket", "long poll"])
def test_by_tls_and_a_proxy(
    settings: Settings,
    client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    websockets: bool,
) -> None:
    """As a machine in an office reaches a platform elsewhere. What it trusts is what the
    environment says, and a certificate that it does not trust is refused."""
    certificate = make_certificate(tmp_path)
    served = replica(settings, certificate=certificate, websockets=websockets)
    with served as there, tunnel(there.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        with pytest.raises(TransportUnreachable, match="certificate"), impatient():
            node(there, "edge", "https://relay.example")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
        with closing(node(there, "edge", f"https://localhost:{there.port}")) as edge:
            assert edge.connection_kind == ("websocket" if websockets else "long poll")
            put(client, "edge", steps(position=7))
            assert read(edge, 1) == [steps(position=7)]
            push(edge, 1)
            wait_until(lambda: inbox(client, "middle") == [steps(position=1)])
        assert set(proxy.asked_for) == {"relay.example:443", f"localhost:{there.port}"}


def test_the_token_is_in_no_log(
    here: Replica, door: Gate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LogCapture()
    monkeypatch.setattr(
        "node_runner.transport.relay_transport.log",
        structlog.wrap_logger(None, processors=[written]),
    )
    with closing(node(here, "edge", door.url)) as edge:
        door.sever()
        push(edge, 0)
    assert "relay_connected" in str(written.entries)
    assert here.token("edge")[:20] not in str(written.entries)
