"""The systemd unit."""

import configparser
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node_runner import units
from node_runner.cli import app

OPTIONS = [
    "--model",
    "far/pydoc-llama",
    "--location",
    'a "b" 50% $HOME',
    "--gpu",
    "0",
    "--gpu",
    "1",
]


def parsed(text: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    return unit


@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_systemd_takes_the_unit(system: bool, tmp_path: Path) -> None:
    service = units.Service(system=system, user="root", home=tmp_path)
    file = tmp_path / units.NAME
    file.write_text(units.render(service, OPTIONS))
    unit = parsed(file.read_text())
    assert unit["Service"]["NoNewPrivileges"] == "yes"
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["RestartPreventExitStatus"] == "2 78"
    assert ("ProtectSystem" in unit["Service"]) is system
    assert ("User" in unit["Service"]) is system
    command = unit["Service"]["ExecStart"]
    assert "-m node_runner.cli start --model far/pydoc-llama" in command
    assert '"a \\"b\\" 50%% $$HOME"' in command
    if shutil.which("systemd-analyze") is None:
        pytest.skip("There is no systemd-analyze here: the unit was only parsed.")
    scope = [] if system else ["--user"]
    done = subprocess.run(
        ["systemd-analyze", *scope, "--man=no", "verify", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert units.NAME not in done.stderr


def test_a_dry_run_prints_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["service", "install", "--dry-run", "--model", "m"])
    assert result.exit_code == 0
    assert "start --model m" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_a_unit_cannot_carry() -> None:
    with pytest.raises(units.ServiceError, match="one line"):
        units.render(units.here(system=False, user=None), ["--location", "a\nUser=root"])
    with pytest.raises(units.ServiceError, match="no user"):
        units.here(system=True, user="nobody-of-this-name")
