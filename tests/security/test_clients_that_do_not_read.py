"""A stranger asks for a long answer and reads nothing of it, or a byte now and then, so that the
gateway keeps connection and buffer for ever."""

import asyncio
import socket
from contextlib import suppress

import pytest

from api.server import client_connection
from stack.servers import gateway_command
from tests.support.gateway.api import Gateway, eventually
from tests.support.gateway.api_served import Served, serve

LONG = "x" * 4000
ENTRIES = 2000
"""Eight megabytes: more than the kernel's buffers of both sides."""


async def ask(gateway: Gateway, served: Served, path: str) -> socket.socket:
    """A request whose answer nobody reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", served.port))
    token = gateway.login()["Authorization"]
    request = f"GET {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: {token}\r\n\r\n"
    await loop.sock_sendall(client, request.encode())
    return client


@pytest.mark.parametrize("path", ["/events", ""])
@pytest.mark.parametrize("trickle", [False, True])
async def test_such_a_client_is_sent_away(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str, trickle: bool
) -> None:
    monkeypatch.setattr(client_connection, "UNREAD_SECONDS", 0.5)
    job = await gateway.submit(max_tokens=8)
    for _ in range(ENTRIES // 100):
        await job.write(*[LONG] * 100)
    slots = gateway.services.reader_slots
    async with serve(gateway) as served:
        client = await ask(gateway, served, job.url + path)

        async def connected() -> bool:
            return served.connections == 1

        async def sent_away() -> bool:
            if trickle:
                with suppress(BlockingIOError, ConnectionError):
                    client.recv(1)
            return served.connections == 0

        await eventually(connected)
        await eventually(sent_away)
        await served.idle()
        client.close()
        assert slots.in_use == 0
        answer = await served.client.get("/healthz")
        assert answer.status_code == 200
    assert not (await job.row()).cancel_requested


def test_the_gateway_is_started_with_this_limit() -> None:
    command = gateway_command(8000)
    assert command[command.index("--http") + 1] == "api.server.http_protocol:LimitedHttpProtocol"
