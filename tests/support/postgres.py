"""The Postgres of a test run."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from market.migrations import upgrade
from stack.servers import Postgres

TEMPLATE = "template_far_mesh"
"""The database that Alembic migrated; those of the tests are copies of it."""


class OneConnection(Postgres):
    """Runs SQL by a connection that stays open: a new `psql` takes longer than copying a database.

    Statements are awaited in a thread of their own, since a test's event loop may be running.
    """

    def start(self) -> None:
        super().start()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        url = self.url("postgres").replace("+asyncpg", "")
        connecting = asyncio.run_coroutine_threadsafe(asyncpg.connect(url), self._loop)
        self._connection = connecting.result()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._connection.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        super().stop()

    def execute(self, statement: str) -> str:
        """Run SQL as the superuser; Postgres' command tag comes back, such as ``SELECT 3``."""
        running = asyncio.run_coroutine_threadsafe(self._connection.execute(statement), self._loop)
        tag: str = running.result()
        return tag


@contextmanager
def migrated_postgres(folder: Path) -> Iterator[Postgres]:
    """A running server with the template database. Everything in it is lost at the end."""
    server = OneConnection(folder)
    server.start()
    try:
        _prepare(server)
        yield server
    finally:
        server.stop()


def _prepare(server: Postgres) -> None:
    # It is thrown away at the end: no commit has to wait for a disk.
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        server.execute(f"ALTER SYSTEM SET {setting} = off")
    server.execute("ALTER SYSTEM SET max_wal_size = '128MB'")
    server.execute("SELECT pg_reload_conf()")
    server.execute(f"CREATE DATABASE {TEMPLATE}")
    asyncio.run(upgrade(server.url(TEMPLATE)))


@contextmanager
def copied_database(server: Postgres, name: str) -> Iterator[str]:
    """The URL of an empty, migrated database."""
    # Files that are copied take half the time of blocks that are written to the log, the default.
    server.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
    try:
        yield server.url(name)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")
