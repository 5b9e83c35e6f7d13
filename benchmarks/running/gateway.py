"""A gateway with its Redis and Postgres, without nodes and workers, each a process of its own."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.common.output import console
from market.migrations import upgrade
from stack.processes import Processes
from stack.servers import Postgres, StackError, free_port, redis_command, wait_for_redis

MODEL_ID = "far/pydoc-llama"
REPOSITORY = Path(__file__).parent.parent.parent
MODEL = REPOSITORY / "demo" / "model"
DATABASE = "benchmark"
JWT_SECRET = "a secret for this benchmark, long enough"
START_LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class GatewayServers:
    api_url: str
    redis_url: str
    postgres: Postgres
    api: psutil.Process

    @property
    def database_url(self) -> str:
        return self.postgres.url(DATABASE)


@contextmanager
def gateway_servers(
    settings: Mapping[str, str], *, checkout: Path = REPOSITORY
) -> Iterator[GatewayServers]:
    """Redis, Postgres and the gateway.

    Args:
        settings: Of the gateway, as environment variables, beside those that it cannot do without.
        checkout: Repository whose gateway is started, by its own command.

    Raises:
        StackError: one of them does not start.
    """
    with tempfile.TemporaryDirectory(prefix="far-gateway-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        postgres = Postgres(folder / "postgres")
        postgres.start()
        processes = Processes(folder)
        try:
            postgres.execute(f"CREATE DATABASE {DATABASE}")
            asyncio.run(upgrade(postgres.url(DATABASE)))
            redis_port, api_port = free_port(), free_port()
            processes.start("redis", redis_command(redis_port, folder), {})
            wait_for_redis(redis_port)
            redis_url = f"redis://127.0.0.1:{redis_port}/0"
            environment = {
                "FAR_CONFIG": os.devnull,
                "FAR_DATABASE_URL": postgres.url(DATABASE),
                "FAR_REDIS_URL": redis_url,
                "FAR_MODELS": json.dumps(
                    [{"id": MODEL_ID, "path": str(MODEL), "payment_per_token": "0.0001"}]
                ),
                "FAR_AUTH__JWT_SECRET": JWT_SECRET,
                "FAR_GENERATION__PROMPT_KEY": base64.b64encode(bytes(32)).decode(),
                "FAR_DISCOVERY__ADMISSION": "anyone",
                "PYTHONPATH": str(checkout),
                **settings,
            }
            child = processes.start_python("api", _command(checkout, api_port), environment)
            url = f"http://127.0.0.1:{api_port}"
            _wait_for_api(url, processes)
            yield GatewayServers(url, redis_url, postgres, psutil.Process(child.process.pid))
        except Exception:
            for child in processes.children.values():
                console.print(child.tail(), soft_wrap=True, markup=False)
            raise
        finally:
            processes.stop(last=("redis",))
            postgres.stop()


def _command(checkout: Path, port: int) -> list[str]:
    """How a checkout starts its gateway."""
    program = "import json, sys; from stack.servers import gateway_command as command; "
    program += "print(json.dumps(command(int(sys.argv[1]))))"
    printed = subprocess.run(
        [sys.executable, "-c", program, str(port)],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=checkout,
        stdout=subprocess.PIPE,
        check=True,
    )
    command: list[str] = json.loads(printed.stdout)
    return [*command, "--app-dir", str(checkout)]


def _wait_for_api(url: str, processes: Processes) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        processes.check()
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise StackError(f"The gateway does not answer after {START_LIMIT:.0f} s.")
        time.sleep(0.1)
