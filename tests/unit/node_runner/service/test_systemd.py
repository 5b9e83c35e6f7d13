"""The systemd unit."""

import configparser
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from typer.testing import CliRunner

from node_runner.cli import app
from node_runner.service import systemd

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


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's settings but the test's."""
    for name in [name for name in os.environ if name.startswith(("FAR_NODE_", "XDG_", "SUDO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def shown(*arguments: str) -> configparser.SectionProxy:
    """How the unit of these arguments runs its service."""
    result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.stderr
    return parsed(result.stdout)["Service"]


@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_systemd_takes_the_unit(system: bool, tmp_path: Path) -> None:
    service = systemd.Service(system=system, user="root", home=tmp_path)
    file = tmp_path / systemd.UNIT_NAME
    folders = [Path("/mnt/a disk/50%"), Path("/data/state")]
    file.write_text(systemd.render(service, OPTIONS, folders=folders))
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
    assert systemd.UNIT_NAME not in done.stderr


@pytest.mark.parametrize("named_by", ["option", "settings", "named settings", "environment"])
def test_a_system_service_may_write_to_the_cache_that_was_chosen(named_by: str, home: Path) -> None:
    ours = home / ".config" / "far-node"
    ours.mkdir(parents=True)
    root, options, cache = [], [], "/mnt/a big disk/spans"
    match named_by:
        case "option":
            options = ["--cache", cache]
        case "settings":
            (ours / "config.toml").write_text(f'cache = "{cache}"\n')
        case "named settings":
            (home / "mine.toml").write_text(f'cache = "{cache}"\n')
            root = ["--config", str(home / "mine.toml")]
        case "environment":
            (ours / "environment").write_text(f'# mine\nFAR_NODE_CACHE="{cache}"\n')
    service = shown(*root, "service", "install", "--system", "--model", "m", *options)
    defaults = " ".join(
        f"-{home / each}" for each in (".cache", ".config/far-node", ".local/state")
    )
    assert service["ReadWritePaths"] == f'{defaults} "-{cache}"'


def test_a_system_service_may_write_to_its_state_and_what_updates_change(home: Path) -> None:
    install = ["service", "install", "--system", "--model", "m"]
    assert sys.prefix not in shown(*install)["ReadWritePaths"]
    ours = home / ".config" / "far-node"
    ours.mkdir(parents=True)
    (ours / "environment").write_text("FAR_NODE_STATE=/data/state\nFAR_NODE_AUTO_UPDATE=1\n")
    assert shown(*install)["ReadWritePaths"].split()[3:] == ["-/data/state", f"-{sys.prefix}"]
    off = shown(*install, "--no-auto-update")
    assert off["ReadWritePaths"].split()[3:] == ["-/data/state"]


def test_a_settings_file_that_was_named_is_the_services_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "mine.toml").write_text("")
    monkeypatch.chdir(home)
    service = shown("--config", "mine.toml", "service", "install", "--model", "m")
    command = f"-m node_runner.cli --config {home / 'mine.toml'} start --model m"
    assert service["ExecStart"] == f"{sys.executable} {command}"


@pytest.fixture
def systemctl(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for systemctl was asked, and a place for units."""
    tools, asked = home / "tools", home / "asked"
    tools.mkdir()
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tools / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(systemd.Service, "path", home / systemd.UNIT_NAME)
    return asked


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root acts for another user.")
def test_what_a_system_services_user_has_not_yet_is_made_as_he_would(systemctl: Path) -> None:
    account = pwd.getpwnam("nobody")
    with TemporaryDirectory() as folder:  # pytest's own are for nobody else
        os.chown(folder, account.pw_uid, account.pw_gid)
        service = systemd.Service(system=True, user="nobody", home=Path(folder))
        systemd.install(service, "the unit", folders=[Path(folder) / "spans"])
        made = [
            *service.folders,
            Path(folder, ".config"),
            Path(folder, ".local"),
            Path(folder, "spans"),
        ]
        for each in made:
            assert (each.stat().st_uid, stat.S_IMODE(each.stat().st_mode)) == (
                account.pw_uid,
                0o700,
            )
    assert service.path.read_text() == "the unit"
    assert systemctl.read_text().splitlines() == [
        "daemon-reload",
        f"enable --now {systemd.UNIT_NAME}",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root acts for another user.")
def test_a_folder_that_the_user_may_not_make_is_told(systemctl: Path, home: Path) -> None:
    home.chmod(0o700)
    service = systemd.Service(system=True, user="nobody", home=home)
    with pytest.raises(systemd.ServiceError, match="nobody needs these folders"):
        systemd.install(service, "the unit")
    assert not service.path.exists()


def test_a_dry_run_prints_and_writes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["service", "install", "--dry-run", "--model", "m"])
    assert result.exit_code == 0
    assert "start --model m" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_a_unit_cannot_carry() -> None:
    with pytest.raises(systemd.ServiceError, match="one line"):
        systemd.render(systemd.service_of(system=False, user=None), ["--location", "a\nUser=root"])
    with pytest.raises(systemd.ServiceError, match="absolute"):
        systemd.render(systemd.service_of(system=True, user=None), [], folders=[Path("spans")])
    with pytest.raises(systemd.ServiceError, match="no user"):
        systemd.service_of(system=True, user="nobody-of-this-name")
