"""What asks for the DHT where hivemind is not installed: it says so at once, and starts nothing."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from node_runner.dht.peer_client import DhtEndpoint, DhtUnavailable, find_urls


@pytest.fixture(autouse=True)
def _without_hivemind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hivemind", None)


@pytest.mark.parametrize("arguments", [["discovery"], ["discovery", "--print-peers"]])
def test_the_discovery_service(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 1
    assert "pip install 'far-mesh[dht]'" in ended.output + capsys.readouterr().err


def test_the_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = CliRunner().invoke(app, ["up", "--dht", "--data", str(tmp_path / "data")])
    assert ended.exit_code == 1
    assert "pip install 'far-mesh[dht]'" in ended.output + capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_a_node() -> None:
    with pytest.raises(DhtUnavailable, match=r"pip install 'far-node\[dht\]'"):
        find_urls(DhtEndpoint(("/ip4/127.0.0.1/tcp/1/p2p/x",), "00" * 32))
