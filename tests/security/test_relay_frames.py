"""A node begins long frames and does not finish them, or sends what costs more here than there."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from market.settings import Settings
from mesh import relay
from mesh.relay import Chunk, KeepAlive, OutgoingMessage, Poll, Push, PushAck
from tests.support.gateway.api import OTHER_WALLET, WALLET
from tests.support.gateway.relay import (
    PATIENCE,
    Node,
    Replica,
    bearer,
    on_route,
    replica,
    wait_until,
)

PIECE = bytes(relay.CHUNK_BYTES)


def pieces(count: int) -> Iterator[bytes]:
    """The WebSocket messages of a frame of so many whole pieces."""
    message = OutgoingMessage("middle", b"", bytes(count * relay.CHUNK_BYTES - 1000))
    return relay.chunks(relay.encode(Push(1, [message])))


def close_code(node: Node) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            node.receive(PushAck)
    return 0 if closed.value.rcvd is None else closed.value.rcvd.code


def test_a_frame_that_is_never_finished_ends_the_connection(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    limits = {"transfer_rate": 2**20}
    settings = make_settings(limits=limits, relay={"idle": 1.0})
    on_route(client, "middle")
    with replica(settings) as here, Node(here, "middle") as node:
        node.socket.send(relay.encode(Chunk(4 * len(PIECE), PIECE)))
        began = time.monotonic()
        with pytest.raises(ConnectionClosed) as closed:
            while time.monotonic() - began < PATIENCE:
                node.keep_alive()  # it lives, and so would its frame
                time.sleep(0.05)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == relay.TRY_AGAIN_LATER
        wait_until(lambda: here.transfer_bytes == 0)


def test_a_frame_has_a_deadline_whatever_its_rate(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    on_route(client, "middle")
    with (
        replica(make_settings(limits={"transfer_seconds": 1.0})) as here,
        Node(here, "middle") as node,
    ):
        began = time.monotonic()
        with contextlib.suppress(ConnectionClosed):
            for message in pieces(100):
                node.socket.send(message)
                time.sleep(0.1)  # a megabyte a second
        assert time.monotonic() - began < 5
        assert close_code(node) == relay.TRY_AGAIN_LATER


def test_who_fills_the_budget_with_frames_stops_himself(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    budget = 10 * len(PIECE)
    greedy = [f"greedy_{number}" for number in range(4)]
    on_route(client, "honest", *greedy)
    with (
        replica(make_settings(limits={"max_transfer_bytes": budget})) as here,
        contextlib.ExitStack() as several,
    ):
        nodes = [several.enter_context(Node(here, name, wallet=OTHER_WALLET)) for name in greedy]
        for node in nodes:
            with contextlib.suppress(ConnectionClosed):
                for _, message in zip(range(3), pieces(8), strict=False):
                    node.socket.send(message)
        wait_until(lambda: here.transfer_bytes >= 6 * len(PIECE))
        with Node(here, "honest", wallet=WALLET) as honest:
            for message in pieces(6):
                honest.socket.send(message)
            assert honest.receive(PushAck).number == 1
        assert here.transfer_bytes <= budget


def test_only_nodes_on_routes_send_long_frames(here: Replica, client: redis.Redis) -> None:
    long = list(pieces(2))
    with Node(here, "stranger") as node:
        node.socket.send(long[0])
        assert close_code(node) == relay.TRY_AGAIN_LATER
    on_route(client, "stranger")
    with Node(here, "stranger") as node:
        for message in long:
            node.socket.send(message)
        assert node.receive(PushAck).number == 1


def test_only_nodes_on_routes_send_long_bodies(here: Replica, client: redis.Redis) -> None:
    url, headers = here.url + relay.EXCHANGE_PATH, bearer(here.token("stranger"))
    frames = [
        Poll("connection", "session", "", 0),
        Push(1, [OutgoingMessage("middle", b"", bytes(2**20))]),
    ]
    body = relay.bundle(map(relay.encode, frames))
    with contextlib.suppress(httpx.WriteError):  # it is not read to its end
        assert httpx.post(url, content=body, headers=headers).status_code == 503
    on_route(client, "stranger")
    assert httpx.post(url, content=body, headers=headers).status_code == 200


def test_pieces_have_to_add_up(here: Replica, client: redis.Redis) -> None:
    on_route(client, "middle")
    for rest in (2 * len(PIECE), 0, len(PIECE) // 2):  # where as many as one piece should be left
        with Node(here, "middle") as node:
            node.socket.send(relay.encode(Chunk(2 * len(PIECE), PIECE)))
            node.socket.send(relay.encode(Chunk(rest, PIECE)))
            assert close_code(node) == relay.PROTOCOL_ERROR


def test_a_message_in_crumbs_ends_the_connection(here: Replica, client: redis.Redis) -> None:
    """Fragments of which each costs more here than on the way, and the last never comes."""
    begin = Frame(Opcode.BINARY, b"", fin=False).serialize(mask=True)
    crumb = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)
    with raw_websocket(here, "middle") as connection:
        connection.sendall(begin)
        assert sent_until_closed(connection, crumb * 1000, most=2**24) < 2**24


def test_messages_do_not_pile_up_before_they_are_read(here: Replica, client: redis.Redis) -> None:
    """Messages of a few bytes, each of which costs some hundred here."""
    frame = relay.encode(KeepAlive(1, 1, ""))
    crumb = Frame(Opcode.BINARY, frame).serialize(mask=True)
    with Node(here, "middle") as node:
        with contextlib.suppress(OSError):
            node.socket.socket.sendall(crumb * 100_000)
        assert close_code(node) == 0  # it is not even told


def test_empty_pushes_are_messages_too(
    make_settings: Callable[..., Settings], client: redis.Redis
) -> None:
    slow = make_settings(relay={"messages_per_second": 20})
    with replica(slow) as here, Node(here, "middle") as node:
        began = time.monotonic()
        for _ in range(60):  # two seconds' worth come at once
            node.push()
        assert time.monotonic() - began > 0.5


def test_pings_are_answered_only_while_the_answers_are_read(
    here: Replica, client: redis.Redis
) -> None:
    ping = Frame(Opcode.PING, bytes(125)).serialize(mask=True)
    with raw_websocket(here, "middle") as connection:
        sent = sent_until_closed(connection, ping * 500, most=2**26)
    assert sent < 2**26, "all the answers rest here"


def sent_until_closed(connection: socket.socket, data: bytes, *, most: int) -> int:
    """How many bytes could be sent, up to ``most``, until the other side closed the connection."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            connection.sendall(data)
            sent += len(data)
    return sent


@contextlib.contextmanager
def raw_websocket(at: Replica, node_id: str) -> Iterator[socket.socket]:
    """A node's WebSocket whose client reads nothing."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", at.port))
        lines = [
            f"GET {relay.WEBSOCKET_PATH} HTTP/1.1",
            "Host: relay",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            *(f"{name}: {value}" for name, value in bearer(at.token(node_id)).items()),
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert connection.recv(2**16).startswith(b"HTTP/1.1 101 ")
        yield connection
