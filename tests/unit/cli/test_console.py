"""What operators read where a command cannot work."""

import base64
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from stack.servers import free_port

pytestmark = pytest.mark.usefixtures("log_settings")

COMMANDS = [
    ["ledger", "check", "--no-chain"],
    ["ledger", "rescan"],
    ["settle", "--resume"],
]
SECRET = "a secret for the tests, long enough"


def said(command: list[str], tmp_path: Path, **environment: str) -> str:
    """What a command that fails says, in one line."""
    closed = free_port()
    settings = {
        "FAR_CONFIG": str(tmp_path / "none.yaml"),
        "FAR_DATABASE_URL": f"postgresql+asyncpg://postgres@127.0.0.1:{closed}/none",
        "FAR_REDIS_URL": f"redis://127.0.0.1:{closed}/0",
        "FAR_AUTH__JWT_SECRET": SECRET,
        "FAR_GENERATION__PROMPT_KEY": base64.b64encode(bytes(32)).decode(),
        "FAR_PAYMENTS__ESCROW_CONTRACT": "0x" + "11" * 20,
        "FAR_PAYMENTS__RPC_URLS": f"http://127.0.0.1:{closed}",
    }
    (tmp_path / "none.yaml").write_text("{}")
    done = CliRunner().invoke(app, command, env=settings | environment)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), done.exception
    [line] = done.output.strip().splitlines()
    assert line.startswith("far-mesh: ")
    return line


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_database_that_is_not_there(command: list[str], tmp_path: Path) -> None:
    assert "Postgres or Redis cannot be used" in said(command, tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_setting_that_is_not_valid(command: list[str], tmp_path: Path) -> None:
    line = said(command, tmp_path, FAR_PAYMENTS__RPC_TIMEOUT="-1")
    assert "payments.rpc_timeout" in line
    assert SECRET not in line


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
def test_a_prompt_key_that_is_none(command: list[str], tmp_path: Path) -> None:
    line = said(command, tmp_path, FAR_GENERATION__PROMPT_KEY="")
    assert "FAR_GENERATION__PROMPT_KEY" in line


def test_a_signer_that_is_not_set(tmp_path: Path) -> None:
    assert "FAR_PAYMENTS__OPERATOR_KEYFILE" in said(["settle", "--dry-run"], tmp_path)
