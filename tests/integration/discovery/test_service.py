"""`far-mesh discovery` as an operator runs it: real processes, killed and started again."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from redis.asyncio import Redis

from market.dht import directory
from mesh.dht import records
from stack.servers import free_port
from tests.conftest import DEMO_MODEL, MODEL_ID
from tests.support.dht import OPERATOR, announce, announcement, client, soon


@pytest.fixture
async def service(
    database_url: str, redis_url: str, redis: Redis, tmp_path: Path
) -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    """The running service, and its API's URL."""
    config = {
        "models": [{"id": MODEL_ID, "path": str(DEMO_MODEL), "payment_per_token": "0.0001"}],
        "discovery": {
            "dht_host": "127.0.0.1",
            "dht_port": free_port(),
            "dht_identity": str(tmp_path / "identity"),
            "dht_mirror_interval": 0.2,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        **os.environ,
        "FAR_CONFIG": str(tmp_path / "config.yaml"),
        "FAR_DATABASE_URL": database_url,
        "FAR_REDIS_URL": redis_url,
        "FAR_AUTH__JWT_SECRET": "a secret for the tests, long enough",
        "FAR_GENERATION__PROMPT_KEY": base64.b64encode(bytes(32)).decode(),
        "FAR_DISCOVERY__DHT_OPERATOR_KEY": OPERATOR.seed,
    }
    port = str(free_port())
    command = [sys.executable, "-m", "cli.app", "discovery", "--port", port]
    process = subprocess.Popen(command, env=environment)  # noqa: ASYNC220 - takes milliseconds
    yield process, f"http://127.0.0.1:{port}"
    if process.poll() is None:
        process.terminate()
    await asyncio.to_thread(process.wait, 60)


@pytest.mark.slow
async def test_the_service_serves_dies_and_comes_back(
    service: tuple[subprocess.Popen[bytes], str], redis: Redis
) -> None:
    process, url = service
    addresses = await soon(lambda: directory.peers(redis))
    told = announcement(expires=time.time() + 100)
    async with client(addresses) as node, httpx.AsyncClient(base_url=url) as http:

        async def listed() -> list[dict[str, object]]:
            try:
                answer = await http.get(f"/api/discovery/dht/{MODEL_ID}")
            except httpx.TransportError:
                return []
            nodes: list[dict[str, object]] = answer.json()["nodes"]
            return nodes

        assert await announce(node, told) == 1
        [found] = await soon(listed)
        assert (found["node_id"], found["on_routes"]) == ("node_0", False)
        signpost = (await node.read(records.SIGNPOST_KEY))[records.SIGNPOST_SUBKEY]
        assert records.read_signpost(signpost, OPERATOR.public).urls == ["http://127.0.0.1:8000"]

        [dht] = [
            child
            for child in psutil.Process(process.pid).children()
            if "discovery" in child.cmdline()
        ]
        dht.send_signal(signal.SIGKILL)
        await redis.flushall()
        # Started again, under the same address, with nothing in it until the node announces again.
        assert await soon(lambda: directory.peers(redis)) == addresses

        async def told_again() -> int:
            return await announce(node, announcement(expires=time.time() + 100))

        assert await soon(told_again) == 1
        assert await soon(listed)
        everybody = psutil.Process(process.pid).children(recursive=True)
        assert "p2pd" in [child.name() for child in everybody]
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0
        _, alive = await asyncio.to_thread(psutil.wait_procs, everybody, 20)
        assert alive == []
