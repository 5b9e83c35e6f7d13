"""A stranger opens connections and sends no request, or its head byte by byte, so that the gateway
keeps them for ever."""

import asyncio
from contextlib import suppress

import pytest

from api.server import client_connection
from tests.support.gateway.api import Gateway, eventually
from tests.support.gateway.api_served import serve

HEAD = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\nX-Slow: "


@pytest.mark.parametrize("first", [b"", HEAD, HEAD[:-2] + b"\r\n\r\n" + HEAD])
async def test_such_a_connection_is_closed(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    """Nothing sent, a head that is begun, or a second one after a whole request."""
    monkeypatch.setattr(client_connection, "HEAD_SECONDS", 0.5)
    async with serve(gateway) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(first)

        async def connected() -> bool:
            return served.connections == 1

        async def sent_away() -> bool:
            if first:
                with suppress(ConnectionError):
                    writer.write(b"x")
                    await writer.drain()
            return served.connections == 0

        await eventually(connected)
        await eventually(sent_away)
        writer.transport.abort()
        assert (await served.client.get("/healthz")).status_code == 200


async def test_a_connection_with_requests_is_kept(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while its request takes longer than a head may."""
    monkeypatch.setattr(client_connection, "HEAD_SECONDS", 0.2)
    job = await gateway.submit()
    async with serve(gateway) as served:
        following = asyncio.create_task(served.client.get(f"{job.url}/events"))
        await asyncio.sleep(0.6)  # what must not happen within this time
        await job.write("a")
        await job.complete()
        assert "1-done" in (await following).text
