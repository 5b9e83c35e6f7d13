"""Looking for a newer version on a local index, and having a stand-in for pip install it."""

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from node_runner.service import auto_update
from node_runner.service.auto_update import Updater, released_versions

FILES: list[dict[str, Any]] = [
    {"filename": "far_node-0.0.1-py3-none-any.whl"},
    {"filename": "far_node-9.1-py3-none-any.whl"},
    {"filename": "far_node-9.0.tar.gz"},
    {"filename": "far_node-9.2-py3-none-any.whl", "yanked": "broken"},
    {"filename": "far_node-9.9rc1-py3-none-any.whl"},
    {"filename": "notes.txt"},
]


class Index(BaseHTTPRequestHandler):
    files = FILES

    def do_GET(self) -> None:
        found = self.path == "/simple/far-node/"
        body = json.dumps({"files": self.files}).encode()
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def index() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip was asked; it always fails."""
    found: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        found.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no space left")

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_released_versions_that_were_not_taken_back(index: str) -> None:
    assert sorted(map(str, released_versions(index))) == ["0.0.1", "9.0", "9.1"]


def test_an_index_that_is_none(index: str) -> None:
    with pytest.raises(httpx.HTTPError):
        released_versions(index.replace("simple", "other"))
    assert not Updater("http://127.0.0.1:9/").ready()


def test_a_newer_version_is_installed_when_nothing_is_served(
    index: str, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_update, "nodes_idle", lambda: False)
    busy = Updater(index)
    assert not busy.ready()
    monkeypatch.setattr(auto_update, "nodes_idle", lambda: True)
    for name in ("POLL_SECONDS", "IDLE_POLL_SECONDS"):
        monkeypatch.setattr(auto_update, name, 0.0)
    updates = Updater(index)
    assert updates.ready()
    assert not updates.install()
    (command,) = commands
    assert command[-3:] == ["--index-url", index, "far-node[serve]==9.1"]
    assert not updates.ready()  # what failed once is left alone


def test_nothing_newer(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "files", FILES[:1])
    assert not Updater(index).ready()
