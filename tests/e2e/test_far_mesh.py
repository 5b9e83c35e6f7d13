"""The command `far-mesh`, as its user runs it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stack.servers import free_port, port_in_use
from tests.conftest import DEMO_MODEL
from tests.e2e.conftest import wait_until

pytestmark = pytest.mark.slow

LAST_LINE = "Ctrl-C stops everything."
"""What `far-mesh up` prints once it has printed all else."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, and outside pytest's own: Unix sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="far-cli-") as made:
        yield Path(made)


class Running:
    """A `far-mesh up` and what it has printed."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.data = folder / "data"
        self.printed = folder / "printed"
        self.ports = {name: free_port() for name in ("--port", "--redis-port", "--chain-port")}
        command = far_mesh("up", "--data", str(self.data), *self.port_options(), *options)
        with self.printed.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    def port_options(self) -> list[str]:
        return [text for name, port in self.ports.items() for text in (name, str(port))]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['--port']}"

    def wait(self) -> None:
        def is_up() -> bool:
            assert self.process.poll() is None, self.printed.read_text()
            return LAST_LINE in self.printed.read_text()

        wait_until(is_up, "the mesh to be up", seconds=150)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)


def far_mesh(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli.app", *arguments]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(
        far_mesh(*arguments),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def free_ports() -> list[str]:
    names = ("--port", "--redis-port", "--chain-port")
    return [text for name in names for text in (name, str(free_port()))]


def processes_below(folder: Path) -> list[str]:
    """Command lines that still name the folder."""
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or [])
    ]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One `far-mesh up` for the tests that follow each other down to its end."""
    with tempfile.TemporaryDirectory(prefix="far-up-") as made:
        started = Running(Path(made))
        try:
            started.wait()
            yield started
        finally:
            if started.process.poll() is None:
                started.interrupt()


def test_up_prints_its_urls(running: Running) -> None:
    assert running.url in running.printed.read_text()
    assert httpx.get(f"{running.url}/readyz").status_code == 200


def test_a_second_up_is_told_what_is_in_use(running: Running, folder: Path) -> None:
    same_ports = run("up", "--data", str(folder / "other"), *running.port_options())
    assert same_ports.returncode == 1
    assert str(running.ports["--port"]) in same_ports.stdout
    assert "in use" in same_ports.stdout

    same_folder = run("up", "--data", str(running.data), *free_ports())
    assert same_folder.returncode == 1
    assert f"in use by process {running.process.pid}" in same_folder.stdout
    assert httpx.get(f"{running.url}/readyz").status_code == 200


def test_up_restarts_a_node_that_died(running: Running) -> None:
    (node,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "node_runner.cli" in (process.info["cmdline"] or [])
        and str(running.data / "provider-1.json") in process.info["cmdline"]
    ]
    node.kill()
    wait_until(lambda: "node-1 died" in running.printed.read_text(), "the news of the death")
    log = running.data / "logs" / "node-1.log"
    wait_until(lambda: log.read_text().count('"node_started"') == 2, "the node's second start")


def test_ctrl_c_leaves_nothing_behind(running: Running) -> None:
    assert running.interrupt() == 0
    assert processes_below(running.data) == []
    assert not any(port_in_use(port) for port in running.ports.values())
    assert not running.data.exists()


def test_up_serves_any_supported_checkpoint(folder: Path) -> None:
    model = folder / "tiny-qwen"
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    (model / "tokenizer.json").write_text((DEMO_MODEL / "tokenizer.json").read_text())
    running = Running(folder, "--model", str(model), "--nodes", "4")
    running.wait()
    (offer,) = httpx.get(f"{running.url}/api/inference/models").json()["models"]
    assert (offer["id"], offer["layers"], offer["active_nodes"]) == ("tiny-qwen", 4, 4)
    assert offer["available"] is True
    assert running.interrupt() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "/no/such/model"], "Cannot read the model /no/such/model"),
        (["--nodes", "7"], "6 layers can be split over 1 to 6 nodes, not 7"),
        (["--nodes", "0"], "greater than or equal to 1"),
        (["--data", "/proc"], "/proc"),
    ],
)
def test_mistakes_get_a_sentence(folder: Path, options: list[str], said: str) -> None:
    data = ("--data", str(folder / "data"))
    ran = run("up", *data, *free_ports(), *options, COLUMNS="200")
    assert ran.returncode != 0
    assert said in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert not (folder / "data").exists()


def test_the_demo_shows_the_whole_path(folder: Path) -> None:
    request = ("--prompt", "The if statement", "--max-tokens", "12")
    ran = run("demo", *request, TMPDIR=str(folder), COLUMNS="160")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for step in (
        "logged in with the wallet",
        "The if statement",
        "tokens/s",
        "Who served it",
        "shares and fee add up to the cost",
        "ledger and chain agree to the last unit",
        "stopped and cleaned up",
    ):
        assert step in ran.stdout
    assert "✗" not in ran.stdout
    assert processes_below(folder) == []
