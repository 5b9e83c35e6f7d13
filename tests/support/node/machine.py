"""A provider's machine, and the gateway that it talks to."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from market.nodes import live_lookup
from market.nodes.node import Node
from market.settings import Settings
from stack.dev_chain_client import write_keystore
from stack.servers import free_port
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.gateway.api import PROVIDER, Gateway, open_gateway
from tests.support.gateway.api_served import serve

PASSWORD = "open sesame"
PATIENCE = 90.0
"""Seconds. A node imports torch and loads its span, maybe beside other tests."""


async def until(look: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What ``look`` gives as soon as that is true."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(0.05)
    raise AssertionError(what)


@dataclass
class Machine:
    """A provider's machine: a home folder, and processes of `far-node` in it."""

    home: Path
    url: str
    redis_url: str
    gateway: Gateway
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        kept = {
            name: value for name, value in os.environ.items() if name[:4] not in ("FAR_", "XDG_")
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "node_runner.cli", *arguments),
            env={**kept, "HOME": str(self.home), "OMP_NUM_THREADS": "1", **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self.processes.append(process)
        return process

    async def end(self, *arguments: str, **environment: str) -> tuple[int | None, str]:
        """The exit status of a command that ends, and its output, the white space evened."""
        process = await self.start(*arguments, **environment)
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
        return process.returncode, " ".join(output.decode().split())

    async def run(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """The output of a command that ends with this status."""
        ended, text = await self.end(*arguments, **environment)
        assert ended == status, text
        return text

    async def serve(self, *arguments: str) -> asyncio.subprocess.Process:
        """`far-node start` of the demo model."""
        options = ["--model", MODEL_ID, "--path", str(DEMO_MODEL), "--redis", self.redis_url]
        options += ["--cache", str(self.home / "spans"), "--kv-gb", "0.05"]
        return await self.start("start", *options, *arguments)

    async def login(self) -> str:
        """By a key file that is gone afterwards."""
        keyfile = self.home / "wallet.json"
        write_keystore(PROVIDER, keyfile, PASSWORD)
        said = await self.run(
            *("login", "--discovery", self.url, "--keyfile", str(keyfile), "--machine", "attic"),
            FAR_NODE_PASSWORD=PASSWORD,
        )
        keyfile.unlink()
        return said

    async def nodes(self, count: int) -> list[Node]:
        """The active nodes, once there are so many."""

        async def look() -> tuple[list[Node]] | None:
            for process in self.processes:
                if process.returncode:
                    output, _ = await process.communicate()
                    raise AssertionError(output.decode())
            found = await live_lookup.available_nodes(self.gateway.redis, MODEL_ID)
            return (found,) if len(found) == count else None

        (found,) = await until(look, f"{count} nodes")
        return list(found)

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.run("status", "--json"))
        return found

    def token(self) -> dict[str, Any]:
        file = self.home / ".config" / "far-node" / "login.json"
        found: dict[str, Any] = json.loads(file.read_text())
        return found


@asynccontextmanager
async def machine_at(
    make_settings: Callable[..., Settings], redis_url: str, home: Path
) -> AsyncIterator[Machine]:
    """A machine, and the gateway that it talks to."""
    port = free_port()
    auth = {
        "jwt_secret": "a secret for the tests, long enough",
        "domain": f"127.0.0.1:{port}",
        "device_poll_interval": 0.1,
    }
    url = f"http://127.0.0.1:{port}"
    discovery = {"health_check_interval": 0.5}
    settings = make_settings(auth=auth, public_url=url, discovery=discovery)
    async with open_gateway(settings) as gateway, serve(gateway, port=port):
        made = Machine(home, url, redis_url, gateway)
        try:
            yield made
        finally:
            for process in made.processes:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.terminate()
                    await process.communicate()
