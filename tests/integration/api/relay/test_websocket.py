"""WebSocket messages that are no frames, and limits of the server."""

import pytest
import redis
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import connect

from market.settings import Settings
from mesh import relay
from mesh.relay import (
    Hello,
    KeepAliveAck,
)
from stack.servers import gateway_command
from tests.support.gateway.relay import (
    PATIENCE,
    Node,
    Replica,
    bearer,
    dial,
    replica,
    websocket_url,
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91\xdd\xff\xff\xff\xff",
        bytes(2**10),
        relay.encode(KeepAliveAck(1)),
        relay.encode(Hello(1, "again", "")),
        relay.encode(relay.Chunk(2**40, b"x")),
    ],
)
def test_a_frame_that_is_none_ends_the_connection(
    here: Replica, client: redis.Redis, data: bytes
) -> None:
    with Node(here, "middle") as node:
        node.socket.send(data)
        with pytest.raises(ConnectionClosed) as closed:
            node.receive(KeepAliveAck)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == relay.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("max_message_bytes", "code"),
    [(relay.MAX_MESSAGE_BYTES, CloseCode.MESSAGE_TOO_BIG), (2**24, relay.PROTOCOL_ERROR)],
)
def test_a_message_that_is_too_long_ends_the_connection(
    settings: Settings, max_message_bytes: int, code: int
) -> None:
    with (
        replica(settings, max_message_bytes=max_message_bytes) as here,
        Node(here, "middle") as node,
    ):
        node.socket.send(relay.encode(relay.Chunk(0, bytes(relay.MAX_MESSAGE_BYTES))))
        with pytest.raises(ConnectionClosed) as closed:
            node.receive(KeepAliveAck)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code


def test_nothing_compressed_is_taken_in(here: Replica, client: redis.Redis) -> None:
    with dial(here, "middle") as offering:
        assert offering.request is not None
        assert "permessage-deflate" in offering.request.headers["Sec-WebSocket-Extensions"]
        assert offering.protocol.extensions == []


def test_the_gateway_is_started_with_these_limits() -> None:
    module, *options = gateway_command(8000)[1:]
    assert module == "uvicorn"
    started = uvicorn.main.make_context("uvicorn", options).params
    assert started["ws_max_size"] == relay.MAX_MESSAGE_BYTES
    assert started["ws_per_message_deflate"] is False
    assert started["http"] == "api.server.http_protocol:LimitedHttpProtocol"
    assert started["ws"] == "api.server.websocket_protocol:LimitedWebSocketProtocol"


def test_another_version_is_turned_away(here: Replica, client: redis.Redis) -> None:
    with Node(here, "middle"):  # the same, but for the version
        pass
    with connect(websocket_url(here), additional_headers=bearer(here.token("middle"))) as speaking:
        speaking.send(relay.encode(Hello(relay.VERSION + 1, "session", "")))
        with pytest.raises(ConnectionClosed):
            speaking.recv(timeout=PATIENCE)
