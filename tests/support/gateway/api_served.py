"""The gateway behind a real server, for clients that hang up."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn

from api.server.http_protocol import LimitedHttpProtocol
from tests.support.gateway.api import PATIENCE, Gateway, eventually


class Served:
    """The application behind uvicorn, and a client that can hang up."""

    def __init__(self, server: uvicorn.Server, client: httpx.AsyncClient, port: int) -> None:
        self.client = client
        self.port = port
        self._server = server

    def stop(self) -> None:
        """What SIGTERM does."""
        self._server.should_exit = True

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._server.server_state.connections)

    @property
    def backed_up(self) -> bool:
        """Whether some client does not take in what is sent to it."""
        connections = self._server.server_state.connections
        return any(
            isinstance(each, LimitedHttpProtocol) and each.is_backed_up for each in connections
        )

    async def idle(self) -> None:
        """Wait until the server is through with all requests."""

        async def look() -> bool:
            return not self._server.server_state.tasks

        await eventually(look)


@asynccontextmanager
async def serve(gateway: Gateway, *, port: int = 0) -> AsyncIterator[Served]:
    """The same application behind a real server, on a port of its own unless one is given."""
    listening = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(
        uvicorn.Config(
            gateway.app,
            lifespan="off",
            log_config=None,
            http=LimitedHttpProtocol,
            ws="none",
            access_log=False,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))

    async def started() -> bool:
        return server.started

    await eventually(started)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{listening.getsockname()[1]}",
            headers=gateway.login(),
            timeout=PATIENCE,
        ) as client:
            yield Served(server, client, listening.getsockname()[1])
    finally:
        server.should_exit = True
        await serving
        listening.close()
