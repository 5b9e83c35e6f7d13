"""Real servers for the tests: one Redis, one Postgres and one chain for the whole run.

Every test gets an empty Redis and a database of its own, copied from one that Alembic migrated.
"""

import base64
import gc
import itertools
import os
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from xdist.scheduler import LoadFileScheduling

from market import db
from market.settings import Settings
from market.settings.deployment import Deployment
from stack.dev_chain.server import serve
from stack.dev_chain_client import DevChainClient, development_account, write_keystore
from stack.servers import Postgres, free_port, redis_command, wait_for_redis
from tests.support.folders import server_folder
from tests.support.postgres import copied_database, migrated_postgres

OPERATOR_PASSWORD = "operator"
DEMO_MODEL = Path(__file__).parent.parent / "demo" / "model"
MODEL_ID = "far/pydoc-llama"


STACKS_OF_THEIR_OWN = ("test_chat.py", "test_far_mesh.py", "test_moving.py")
"""Files of `tests/e2e` that do not use the running mesh."""

_configure = structlog.configure


def _configure_uncached(**options: Any) -> None:
    """As a process does, but that a logger which one test has used can be captured by another."""
    _configure(**{**options, "cache_logger_on_first_use": False})


structlog.configure = _configure_uncached

hypothesis.settings.register_profile("untimed", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("untimed")


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    """Of several processes, one takes a file's tests, and one takes all that use the running mesh,
    since each process would start its own."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        shares_mesh = file.startswith("tests/e2e/") and not file.endswith(STACKS_OF_THEIR_OWN)
        return "the running mesh" if shares_mesh else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """What is loaded by now stays loaded: no garbage collection looks at it again."""
    gc.collect()
    gc.freeze()


_left: list[str] = []
"""Slow tests that this run leaves out."""


def pytest_deselected(items: list[pytest.Item]) -> None:
    _left.extend(item.nodeid for item in items if item.get_closest_marker("slow"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = _left


def pytest_testnodedown(node: Any) -> None:
    """One of several processes has ended; each of them left out the same tests."""
    _left[:] = getattr(node, "workeroutput", {}).get("left", _left)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left and terminalreporter.config.option.markexpr.startswith("not slow"):
        terminalreporter.section(f"Slow tests left to `make test-all`: {len(_left)}")
        for file, count in sorted(Counter(test.partition("::")[0] for test in _left).items()):
            terminalreporter.line(f"{count:3d}  {file}")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with server_folder("far-test-") as made:
        yield made


@pytest.fixture(scope="session")
def redis_url(folder: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(redis_command(port, folder))
    wait_for_redis(port)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture(scope="session")
def postgres(folder: Path) -> Iterator[Postgres]:
    with migrated_postgres(folder / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def chain_url() -> Iterator[str]:
    """A development chain in this process."""
    server = serve(free_port())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


_numbers = itertools.count()


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """An empty, migrated database."""
    with copied_database(postgres, f"test_{next(_numbers)}") as url:
        yield url


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    made, _ = db.connect(database_url, pool_size=40)
    yield made
    await made.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> db.Sessions:
    return db.Sessions(engine, expire_on_commit=False)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """An empty Redis."""
    client = Redis.from_url(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def log_settings() -> Iterator[None]:
    """Those of before, after a command has let logs go to an output that is closed by now."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain with both contracts deployed, for one test."""

    url: str
    actor: DevChainClient
    deployment: Deployment
    keyfile: Path


@pytest.fixture
def chain(chain_url: str, tmp_path: Path) -> Chain:
    actor = DevChainClient(chain_url)
    operator = development_account(0)
    keyfile = tmp_path / "operator.json"
    write_keystore(operator, keyfile, OPERATOR_PASSWORD)
    return Chain(chain_url, actor, actor.deploy(operator.address), keyfile)


@pytest.fixture
def make_settings(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Settings]:
    """Settings for this test's servers; keyword arguments override whole sections."""
    monkeypatch.setenv("FAR_CONFIG", os.devnull)
    monkeypatch.setenv("FAR_DISCOVERY__ADMISSION", "anyone")

    def make(**sections: object) -> Settings:
        values: dict[str, object] = {
            "database_url": database_url,
            "redis_url": redis_url,
            "models": [
                {"id": MODEL_ID, "path": str(DEMO_MODEL), "payment_per_token": "0.0001"},
            ],
            "auth": {"jwt_secret": "a secret for the tests, long enough", "domain": "test"},
            "generation": generation(),
            "limits": {"read_cache": 0},  # what a test has changed it reads at once
        }
        return Settings.model_validate(values | sections)

    return make


def generation(**values: object) -> dict[str, object]:
    """The settings' generation section, with a prompt key."""
    return {"prompt_key": base64.b64encode(bytes(32)).decode(), **values}
