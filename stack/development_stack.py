"""Starts the whole mesh on one machine, in order, and stops it again without leaving anything.

A development network: chain and database begin empty at every start.
"""

import asyncio
import base64
import fcntl
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import httpx
import redis
import yaml
from eth_account import Account
from eth_account.signers.local import LocalAccount

from market.migrations import upgrade
from market.settings.deployment import Deployment
from mesh import redis_keys
from mesh.dht.installation import hivemind_missing
from stack.dev_chain_client import DevChainClient, development_account, write_keystore
from stack.plan import DATABASE, Plan, load, spans_of
from stack.processes import ManagedProcess, Processes
from stack.servers import (
    START_LIMIT,
    Postgres,
    StackError,
    free_port,
    gateway_command,
    port_in_use,
    redis_command,
    wait_for_redis,
)

VITAL = ("redis", "chain")
"""What holds state in memory: not started again, and stopped last."""

NODES_LIMIT = 120.0
"""Seconds that the nodes get to load their spans and register."""


class DevelopmentStack:
    """The running mesh. Use as a context manager, or call `stop` yourself."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda _: None) -> None:
        self.plan = plan
        self._say = say
        self._lock: IO[str] | None = None
        self._secrets = {
            "FAR_AUTH__JWT_SECRET": secrets.token_hex(32),
            "FAR_GENERATION__PROMPT_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "FAR_PAYMENTS__OPERATOR_PASSWORD": secrets.token_hex(16),
        }
        if plan.dht:
            self._secrets["FAR_DISCOVERY__DHT_OPERATOR_KEY"] = secrets.token_hex(32)
        self._node_password = secrets.token_hex(16)
        self.processes = Processes(plan.folder / "logs")
        self.metrics_ports: dict[str, int] = {}
        self.wallets: list[LocalAccount] = []
        self.postgres = Postgres(plan.folder / "postgres")
        self.chain = DevChainClient(plan.rpc_url)
        self.dht_port = free_port()

    def __enter__(self) -> "DevelopmentStack":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def secret_values(self) -> list[str]:
        """What must never appear in a log."""
        return [*self._secrets.values(), self._node_password]

    def start(self) -> None:
        """Bring everything up.

        Raises:
            StackError: a port or the folder is in use, or a part does not start; then whatever
                was started is stopped again. Or the DHT was asked for, without hivemind.
        """
        if self.plan.dht and (reason := hivemind_missing("far-mesh")):
            raise StackError(reason)
        self._check_ports()
        self._take_folder()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        plan = self.plan
        self.model = load(plan)
        spans = spans_of(self.model, plan.nodes)
        self._say("Starting Redis, Postgres and the chain")
        with ThreadPoolExecutor() as pool:
            servers = [
                pool.submit(self.start_redis),
                pool.submit(self.postgres.start),
                pool.submit(self._start_chain),
            ]
            for server in servers:
                server.result()
        self._say("Creating the database and deploying FarToken and InferenceEscrow")
        self.postgres.execute(f"CREATE DATABASE {DATABASE}")
        self.database_url = self.postgres.url(DATABASE)
        asyncio.run(upgrade(self.database_url))
        operator = development_account(0)
        self.deployment: Deployment = self.chain.deploy(operator.address)
        self.deployment.write(plan.folder / "contracts.json")
        write_keystore(
            operator,
            plan.folder / "operator.json",
            self._secrets["FAR_PAYMENTS__OPERATOR_PASSWORD"],
        )
        self.add_wallets(len(spans))
        self._write_config()
        self._say("Starting the API, the worker and the nodes")
        self.start_api()
        if plan.dht:
            self.start_discovery()
            self._wait_for_dht()
        for index in range(plan.workers):
            self.start_worker(index)
        for index, span in enumerate(spans):
            self.start_node(index, None if plan.placed else span)
        self._wait_for_api()
        self._say("Waiting for the nodes to load their layers")
        self.wait_for_nodes(len(spans))

    def stop(self) -> None:
        """Stop everything, the newest first, and remove the data folder."""
        self.processes.stop(last=VITAL)
        if hasattr(self.postgres, "_server"):
            self.postgres.stop()
        if self._lock is not None:
            shutil.rmtree(self.plan.folder, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def start_redis(self) -> None:
        folder = self.plan.folder / "redis"
        folder.mkdir(exist_ok=True)
        self.processes.start("redis", redis_command(self.plan.redis_port, folder), {})
        wait_for_redis(self.plan.redis_port)

    def start_api(
        self, name: str = "api", host: str = "127.0.0.1", port: int = 0
    ) -> ManagedProcess:
        """A replica of the gateway, on the plan's port unless another is given. Whoever reaches it
        signs for where it is."""
        port = port or self.plan.api_port
        environment = self._environment() | {"FAR_AUTH__DOMAIN": f"{host}:{port}"}
        return self.processes.start_python(name, gateway_command(port, host), environment)

    def start_discovery(self) -> ManagedProcess:
        """The DHT's peer and mirror; the discovery API is the gateway's."""
        return self.processes.start_python("dht", ["-m", "discovery"], self._environment())

    def start_worker(self, index: int) -> ManagedProcess:
        name = f"worker-{index}"
        port = {"FAR_METRICS_PORT": str(self._metrics_port(name))}
        return self.processes.start_python(name, ["-m", "workers"], self._environment() | port)

    def start_node(
        self,
        index: int,
        span: tuple[int, int] | None,
        name: str | None = None,
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> ManagedProcess:
        """A runner for one span (none: the platform chooses); the one that starts at layer 0 holds
        the edge. ``options`` of `far-node start` outweigh what the supervisor says; ``prefix`` is a
        command that runs it elsewhere."""
        name = name or f"node-{index}"
        plan = self.plan
        command = ["-m", "node_runner.cli", "start"]
        command += ["--model", plan.model_id, "--path", plan.model]
        command += ["--span", f"{span[0]}:{span[1]}"] if span else []
        command += ["--wallet", self.wallets[index].address]
        command += ["--keyfile", str(self._keyfile(index))]
        command += ["--discovery", plan.api_url, "--redis", plan.redis_url]
        command += ["--threads", str(plan.node_threads), "--cache", str(plan.folder / "spans")]
        command += ["--edge"] if span and span[0] == 0 else []
        command += ["--metrics-port", str(self._metrics_port(name)), *plan.node_options, *options]
        own = {
            "FAR_NODE_PASSWORD": self._node_password,
            "FAR_NODE_STATE": str(plan.folder / "state"),
        }
        environment = self._environment() | own
        return self.processes.start(name, [*prefix, sys.executable, *command], environment)

    def wait_for_nodes(self, count: int) -> None:
        """Return once exactly so many nodes are on the routes.

        Raises:
            StackError: one of them died, or they take too long.
        """
        path = f"/api/discovery/nodes/active/{self.plan.model_id}"
        give_up = time.monotonic() + NODES_LIMIT
        with httpx.Client(base_url=self.plan.api_url) as http:
            while http.get(path).json()["total_nodes"] != count:
                self.processes.check()
                if time.monotonic() > give_up:
                    raise StackError(f"The nodes are not ready after {NODES_LIMIT:.0f} s.")
                time.sleep(0.1)

    def watch(self, report: Callable[[str], None]) -> None:
        """Until interrupted: start again what dies and can be started again.

        Raises:
            StackError: Redis or the chain died.
        """
        self.processes.watch(report, vital=VITAL)

    def _metrics_port(self, name: str) -> int:
        self.metrics_ports[name] = free_port()
        return self.metrics_ports[name]

    def _check_ports(self) -> None:
        plan = self.plan
        ports = {"--port": plan.api_port, "--redis-port": plan.redis_port}
        ports["--chain-port"] = plan.chain_port
        taken = [f"{port} ({option})" for option, port in ports.items() if port_in_use(port)]
        if taken:
            raise StackError(
                f"Ports in use: {', '.join(taken)}. Is another far-mesh running? "
                "Stop it, or choose other ports."
            )

    def _take_folder(self) -> None:
        folder = self.plan.folder
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "lock"
        if any(folder.iterdir()) and not mark.exists():
            raise StackError(f"{folder} is not empty and was not made by far-mesh: choose another.")
        lock = mark.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"The data folder {folder} is in use by process {lock.read() or '?'}. "
                "Stop it, or choose another with --data."
            ) from None
        for old in folder.iterdir():
            if old != mark:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        (folder / "logs").mkdir()

    def _start_chain(self) -> None:
        port = str(self.plan.chain_port)
        anvil = shutil.which("anvil")
        if anvil:
            self.processes.start("chain", [anvil, "--port", port, "--silent"], {})
        else:
            self.processes.start_python("chain", ["-m", "stack.dev_chain", "--port", port], {})
        give_up = time.monotonic() + START_LIMIT
        while not port_in_use(self.plan.chain_port):
            self.processes.check()
            if time.monotonic() > give_up:
                raise StackError("The chain does not answer.")
            time.sleep(0.05)

    def add_wallets(self, count: int) -> None:
        """Wallets for so many nodes more; the first of all is trusted with the edge."""
        for index in range(len(self.wallets), len(self.wallets) + count):
            wallet: LocalAccount = Account.create()
            self.wallets.append(wallet)
            write_keystore(wallet, self._keyfile(index), self._node_password)

    def _keyfile(self, index: int) -> Path:
        return self.plan.folder / f"provider-{index}.json"

    def _write_config(self) -> None:
        plan = self.plan
        config = {
            "models": [{"id": plan.model_id, "path": plan.model, "payment_per_token": plan.price}],
            "discovery": {
                "trusted_wallets": [self.wallets[0].address],
                "admission": "anyone",
                "dht_host": "127.0.0.1",
                "dht_port": self.dht_port,
                "dht_identity": str(plan.folder / "dht_identity.key"),
            },
            "payments": {
                "deployment": str(plan.folder / "contracts.json"),
                "rpc_urls": [plan.rpc_url],
                "rpc_max_age": 0,
                "operator_keyfile": str(plan.folder / "operator.json"),
                "confirmations": 0,
                "finalized_tag": False,
            },
            "auth": {"domain": f"127.0.0.1:{plan.api_port}"},
        }
        (plan.folder / "far_mesh.yaml").write_text(yaml.safe_dump(config))

    def _environment(self) -> dict[str, str]:
        plan = self.plan
        return {
            **self._secrets,
            "FAR_CONFIG": str(plan.folder / "far_mesh.yaml"),
            "FAR_DATABASE_URL": self.database_url,
            "FAR_REDIS_URL": plan.redis_url,
            "FAR_PUBLIC_URL": plan.api_url,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(plan.node_threads),
            **plan.environment,
        }

    def _wait_for_dht(self) -> None:
        """Nodes are told the DHT's peers when they register."""
        give_up = time.monotonic() + 4 * START_LIMIT
        with redis.Redis(port=self.plan.redis_port) as client:
            while not client.exists(redis_keys.DHT_PEERS):
                self.processes.check()
                if time.monotonic() > give_up:
                    log = self.processes.children["dht"].tail()
                    raise StackError(f"The DHT's peer does not start.\n{log}")
                time.sleep(0.1)

    def _wait_for_api(self) -> None:
        give_up = time.monotonic() + 2 * START_LIMIT
        with httpx.Client(base_url=self.plan.api_url) as http:
            while True:
                self.processes.check()
                try:
                    if http.get("/readyz").status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                if time.monotonic() > give_up:
                    raise StackError(
                        f"The API does not answer.\n{self.processes.children['api'].tail()}"
                    )
                time.sleep(0.1)
