"""A provider's first minute, as docs/provide.md has it: login, doctor, start, with a URL alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account

from mesh import signed_texts
from node_runner.service.exit_codes import CONFIG_ERROR
from stack.development_stack import DevelopmentStack
from tests.conftest import MODEL_ID
from tests.e2e.conftest import Reference, User, wait_until

pytestmark = pytest.mark.slow

PATIENCE = 240.0
"""Seconds. Each command imports torch, beside a whole mesh and maybe other tests."""

NOWHERE = "http://127.0.0.1:9"
"""Stands for the hub: nothing of this may need it."""


@dataclass
class Provider:
    """A machine on which `far-node` was just installed."""

    home: Path
    url: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        foreign = ("FAR_", "XDG_", "HF_")
        kept = {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
        own = {"HOME": str(self.home), "HF_ENDPOINT": NOWHERE, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "node_runner.cli", *arguments],
            env=kept | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of a command that ends."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def active(self) -> list[dict[str, Any]]:
        """The nodes that are on the routes."""
        answer = httpx.get(f"{self.url}/api/discovery/nodes/active/{MODEL_ID}")
        found: list[dict[str, Any]] = answer.raise_for_status().json()["nodes"]
        return found


@pytest.fixture
def provider(stack: DevelopmentStack, tmp_path: Path) -> Iterator[Provider]:
    made = Provider(tmp_path, stack.plan.api_url)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def log_in(provider: Provider) -> str:
    """By the code on the screen and a wallet on another device; returns the wallet."""
    account = Account.create()
    waiting = provider.start("login", "--discovery", provider.url)
    assert waiting.stdout is not None
    shown = ""
    while "Waiting" not in shown:
        line = waiting.stdout.readline()
        assert line, shown
        shown += line
    asked = {
        "user_code": shown.split("?code=")[1].split()[0],
        "wallet_address": account.address,
    }
    with httpx.Client(base_url=f"{provider.url}/api/machines") as http:
        message = http.post("/message", json=asked).raise_for_status().json()["message"]
        signature = signed_texts.sign(message, bytes(account.key))
        http.post("/approve", json=asked | {"signature": signature}).raise_for_status()
    output, _ = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 0, output
    return str(account.address.lower())


def test_whoever_knows_the_url_joins(
    stack: DevelopmentStack, provider: Provider, user: User, reference: Reference
) -> None:
    wallet = log_in(provider)
    status, output = provider.run("doctor", "--quick", "--device", "cpu", "--json")
    assert status == 0, output
    assert json.loads(output[output.index("{") :])["healthy"]
    before = {node["node_id"] for node in provider.active()}
    node = provider.start("start", "--model", MODEL_ID, "--device", "cpu", "--kv-gb", "0.05")
    try:

        def joined() -> set[str]:
            assert node.poll() is None, node.communicate()[0]
            return {each["node_id"] for each in provider.active()} - before

        (node_id,) = wait_until(joined, "the new node on the routes", PATIENCE)
        earned = httpx.get(f"{provider.url}/api/nodes/earnings/{wallet}").raise_for_status().json()
        assert earned["active_nodes"] == 1
        said = user.generate("The return value")
        assert said["text"] == reference.text("The return value")
    finally:
        node.send_signal(signal.SIGINT)
        output, _ = node.communicate(timeout=PATIENCE)
    assert node.returncode == 0, output
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    [ready] = [event for event in events if event["event"] == "weights_ready"]
    assert ready["checked"] == "manifest"
    [started] = [event for event in events if event["event"] == "node_started"]
    assert (started["node_id"], started["placed"]) == (node_id, True)
    wait_until(lambda: {n["node_id"] for n in provider.active()} == before, "the node's leave")


def test_what_is_not_there_ends_with_a_sentence(provider: Provider) -> None:
    log_in(provider)
    status, output = provider.run("start", "--model", "far/none", "--device", "cpu")
    assert status == CONFIG_ERROR, output
    assert "There is no model 'far/none' here." in " ".join(output.split())
