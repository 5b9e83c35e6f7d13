"""Which interpreter `make` takes, and what it says where none fits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder that will be all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def program(path: Path, name: str, line: str) -> None:
    made = path / name
    made.write_text(f"#!/bin/sh\n{line}\n")
    made.chmod(0o755)


def make(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Have the environment made in a folder beside PATH's."""
    environment = path.parent / "environment"
    assert MAKE is not None
    return subprocess.run(
        [MAKE, *options, f"VENV={environment}", f"{environment}/.made"],
        cwd=REPOSITORY,
        env={"PATH": str(path)},
        check=False,
        capture_output=True,
        text=True,
    )


def chosen(path: Path) -> str:
    """The interpreter with which the environment would be made."""
    told = make(path, "--dry-run")
    assert told.returncode == 0, told.stderr
    [line] = [line for line in told.stdout.splitlines() if " -m venv " in line]
    return line.split(" -m venv ")[0]


def test_one_that_does_not_fit_is_passed_over(path: Path) -> None:
    for unfit in ("python3", "python3.14"):
        program(path, unfit, "exit 1")
    program(path, "python3.13", f'exec "{sys.executable}" "$@"')
    program(path, "python3.12", f'exec "{sys.executable}" "$@"')
    assert chosen(path) == "python3.13"
    program(path, "python3", f'exec "{sys.executable}" "$@"')
    assert chosen(path) == "python3"


def test_one_that_only_uv_knows_is_found(path: Path) -> None:
    program(path, "uv", f'[ "$1 $2" = "python find" ] && echo "{sys.executable}"')
    assert chosen(path) == sys.executable


@pytest.mark.parametrize(
    ("has_uv", "remedy"), [(False, "apt install python3-venv"), (True, "uv python install 3.12")]
)
def test_where_none_fits_one_line_says_what_to_do(path: Path, has_uv: bool, remedy: str) -> None:
    program(path, "python3", "exit 1")
    if has_uv:
        program(path, "uv", "exit 2")  # as where it has installed none
    told = make(path)
    assert told.returncode == 2
    [line] = told.stdout.splitlines()
    assert line.startswith("Far Mesh needs Python 3.11 to 3.14")
    assert remedy in line
    assert not os.path.lexists(path.parent / "environment")
