"""Time and bytes of `pip install 'far-node[serve]'`, and modules that a node does not need."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = Path(__file__).parents[2]

NOT_FOR_NODES = ("fastapi", "sqlalchemy", "web3", "pydantic_settings")
"""Modules that a node's installation must not have."""

LIMIT = 1200.0
"""Seconds until pip is stopped."""

DOWNLOADING = re.compile(r"^\s*Downloading \S+ \(([\d.]+) (bytes|kB|MB)\)", re.MULTILINE)
UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6}


@dataclass(frozen=True, slots=True)
class Installed:
    """``seconds`` of making the environment and of pip. Bytes: ``downloaded`` from an index, as pip
    rounds them; ``local`` of wheels that lay on this machine; ``on_disk`` of the environment.
    ``help_seconds``: of the first `far-node --help`. ``present``: modules that are there though a
    node does not need them."""

    seconds: float
    downloaded: int
    local: int
    on_disk: int
    distributions: int
    help_seconds: float
    present: list[str]


def install(folder: Path) -> Installed:
    """Install a node into a new environment below ``folder``, with nothing in pip's cache.

    Raises:
        subprocess.CalledProcessError: pip failed, or `far-node --help` did.
        subprocess.TimeoutExpired: after :data:`LIMIT`.
    """
    venv = folder / "venv"
    report = folder / "report.json"
    began = time.monotonic()
    _run(sys.executable, "-m", "venv", str(venv), folder=folder)
    output = _run(
        *(str(venv / "bin" / "python"), "-m", "pip", "--no-cache-dir", "install"),
        *("--progress-bar", "off", "--report", str(report)),
        *("-c", str(REPOSITORY / "constraints.txt"), f"{REPOSITORY / 'far-node'}[serve]"),
        folder=folder,
    )
    seconds = time.monotonic() - began
    began = time.monotonic()
    _run(str(venv / "bin" / "far-node"), "--help", folder=folder)
    help_seconds = time.monotonic() - began
    entries = json.loads(report.read_text())["install"]
    return Installed(
        seconds=seconds,
        downloaded=downloaded(output),
        local=sum(file.stat().st_size for file in local_wheels(entries)),
        on_disk=bytes_below(venv),
        distributions=len(entries),
        help_seconds=help_seconds,
        present=[name for name in NOT_FOR_NODES if _imports(venv, name, folder)],
    )


def downloaded(output: str) -> int:
    """Bytes that pip's output names as downloaded."""
    return sum(round(float(size) * UNITS[unit]) for size, unit in DOWNLOADING.findall(output))


def local_wheels(entries: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Wheels of pip's report that lay on this machine, and so were not downloaded."""
    urls = [urlsplit(entry["download_info"]["url"]) for entry in entries]
    return [
        Path(unquote(url.path))
        for url in urls
        if url.scheme == "file" and url.path.endswith(".whl")
    ]


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder and below, links not counted."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(file.stat().st_size for file in files)


def _imports(venv: Path, module: str, folder: Path) -> bool:
    try:
        _run(str(venv / "bin" / "python"), "-c", f"import {module}", folder=folder)
    except subprocess.CalledProcessError as error:
        if f"No module named '{module}'" not in error.stderr:
            raise
        return False
    return True


def _run(*command: str, folder: Path) -> str:
    """A command's output. It runs in a folder without our modules, and without PYTHONPATH."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=own, check=True, capture_output=True, text=True, timeout=LIMIT
    ).stdout
