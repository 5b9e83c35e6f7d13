"""`--auto-update`: newer versions from a package index, installed while nothing is served.

Opt-in, since whoever publishes there runs code here. pip does the work, in the environment that
this process runs in, and checks the hashes that the index names.
"""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import distributions, version

import httpx
import structlog
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from node_runner.http_client import open_client
from node_runner.installation import PACKAGE, SERVE
from node_runner.service import control_socket

PYPI = "https://pypi.org/simple/"

POLL_SECONDS = 3600.0
"""Seconds between two queries of the index."""

IDLE_POLL_SECONDS = 5.0
"""Seconds between two checks whether the nodes are idle, once there is something to install."""

TIMEOUT = 30.0
TOTAL_TIMEOUT = 120.0
INSTALL_TIMEOUT = 1800.0


log = structlog.get_logger()


class Updater:
    """Finds and installs a newer version than runs here."""

    def __init__(self, index: str) -> None:
        self._index = index.rstrip("/") + "/"
        self._newer: Version | None = None
        self._poll_at = 0.0
        self._idle = False
        self._failed: Version | None = None

    def ready(self) -> bool:
        """Whether there is something to install, and nothing is being served."""
        now = time.monotonic()
        if now >= self._poll_at:
            if self._newer is None:
                self._newer = self._find()
            self._poll_at = now + (POLL_SECONDS if self._newer is None else IDLE_POLL_SECONDS)
            self._idle = self._newer is not None and nodes_idle()
        return self._newer is not None and self._idle

    def install(self) -> bool:
        """Install the newer version and its dependencies. Returns whether that succeeded; if not,
        that version is not tried again, and the old one goes on."""
        newer, self._newer = self._newer, None
        self._poll_at = time.monotonic() + POLL_SECONDS
        command = [sys.executable, "-m", "pip", "install", "--upgrade", "--no-input"]
        command += ["--index-url", self._index, f"{SERVE}=={newer}"]
        log.info("update_installing", version=str(newer))
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False
            )
            failure = done.stderr[-2000:] if done.returncode else None
        except subprocess.TimeoutExpired:
            failure = f"pip took longer than {INSTALL_TIMEOUT:g} s"
        if failure is not None:
            self._failed = newer
            log.error("update_failed", version=str(newer), reason=failure)
        return failure is None

    def _find(self) -> Version | None:
        try:
            newest = max(released_versions(self._index), default=None)
        except httpx.HTTPError as error:
            log.warning("update_index_unreachable", reason=type(error).__name__)
            return None
        if newest is None or newest <= Version(version(PACKAGE)) or newest == self._failed:
            return None
        log.info("update_found", version=str(newest))
        return newest


def is_checkout() -> bool:
    """Whether this is an editable install, which pip would replace by another."""
    found = distributions(name=PACKAGE)
    origins = [json.loads(each.read_text("direct_url.json") or "{}") for each in found]
    return any(origin.get("dir_info", {}).get("editable") for origin in origins)


def released_versions(index: str) -> list[Version]:
    """The versions on a simple index (PEP 691), without pre-releases and yanked files.

    Raises:
        httpx.HTTPError: the index does not answer.
    """
    with open_client(silence=TIMEOUT, total=TOTAL_TIMEOUT, follow_redirects=True) as http:
        answer = http.get(
            f"{index}{PACKAGE}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
        )
    answer.raise_for_status()
    try:
        files = answer.json()["files"]
        found = {_version(file["filename"]) for file in files if not file.get("yanked")}
    except (ValueError, KeyError, TypeError):
        raise httpx.DecodingError(f"{index} is no simple index in JSON.") from None
    return [each for each in found if each is not None and not each.is_prerelease]


def _version(filename: str) -> Version | None:
    try:
        if filename.endswith(".whl"):
            return parse_wheel_filename(filename)[1]
        return parse_sdist_filename(filename)[1]
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None


def nodes_idle() -> bool:
    """Whether no node of this parent holds a generation now."""
    nodes = [node for node in control_socket.ask_running_nodes() if node.get("kind") == "node"]
    mine = [node for node in nodes if node.get("parent") == os.getpid()]
    return all(not node.get("sessions") for node in mine)
