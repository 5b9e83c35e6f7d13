"""Children under a parent: real processes, of a few lines instead of a node's."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_runner.service import control_socket, device_processes, exit_codes
from node_runner.service.device_processes import DeviceProcess


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of the test's, a parent that looks often, and pytest's own signal handlers."""
    monkeypatch.setenv("FAR_NODE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(device_processes, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(device_processes, "RESTART_DELAYS", (0.01,))
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path
    for each, handler in before.items():
        signal.signal(each, handler)


def child(code: str, *arguments: object, **environment: str) -> DeviceProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return DeviceProcess("cpu", command, environment)


def ends_with(folder: Path, *ends: str) -> DeviceProcess:
    """Runs one of these lines at each start."""
    code = (
        "import os, pathlib, sys\n"
        "marks = pathlib.Path(sys.argv[1])\n"
        "number = len(marks.read_text()) if marks.exists() else 0\n"
        "marks.write_text('x' * (number + 1))\n"
        "exec(sys.argv[2:][number])\n"
    )
    return child(code, folder / "starts", *ends)


def run(*children: DeviceProcess, updater: object = None) -> int:
    return device_processes.run(children, identity={}, schedule=None, updater=updater)  # type: ignore[arg-type]


def test_a_node_is_started_again_until_it_says_what_has_to_be_changed(home: Path) -> None:
    node = ends_with(
        home,
        "raise RuntimeError('a crash')",
        "os.kill(os.getpid(), 9)",
        f"sys.exit({exit_codes.TEMPORARY_FAILURE})",
        f"sys.exit({exit_codes.CONFIG_ERROR})",
    )
    assert run(node) == exit_codes.CONFIG_ERROR
    assert (home / "starts").read_text() == "xxxx"


def test_the_parent_ends_as_the_worst_of_its_nodes() -> None:
    assert run(child("raise SystemExit(0)"), child("raise SystemExit(2)")) == exit_codes.USAGE_ERROR
    assert run(child("raise SystemExit(0)")) == 0


def test_whoever_is_asked_to_end_ends_well(home: Path) -> None:
    refused = child(f"raise SystemExit({exit_codes.CONFIG_ERROR})")
    serving = child(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: exit(0))\n"
        f"os.kill({os.getpid()}, signal.SIGTERM)\n"
        "time.sleep(60)"
    )
    assert run(refused, serving) == 0


def test_what_nodes_are_told_by_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state folder and the password are the parent's; all else that is a flag's is not."""
    monkeypatch.setenv("FAR_NODE_PASSWORD", "secret")
    monkeypatch.setenv("FAR_NODE_SPAN", "0:2")
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    assert run(child(code, home / "told", FAR_NODE_REDIS="redis://:hunter2@localhost")) == 0
    told = json.loads((home / "told").read_text())
    assert {name: value for name, value in told.items() if name.startswith("FAR_NODE_")} == {
        "FAR_NODE_CONFIG": os.devnull,
        "FAR_NODE_PARENT": str(os.getpid()),
        "FAR_NODE_PASSWORD": "secret",
        "FAR_NODE_REDIS": "redis://:hunter2@localhost",
        "FAR_NODE_STATE": str(home / "state"),
    }


class Update:
    """Something to install, and what happens while pip runs."""

    def __init__(self, *, works: bool, meanwhile: object = lambda: None) -> None:
        self.works = works
        self.meanwhile = meanwhile
        self.waits = True

    def ready(self) -> bool:
        return self.waits

    def install(self) -> bool:
        self.waits = False
        self.meanwhile()  # type: ignore[operator]
        return self.works


class Executed(Exception):
    """Raised where the process would become another."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(program: str, command: list[str]) -> None:
        raise Executed(command)

    monkeypatch.setattr(os, "execv", execute)


def test_after_an_update_the_new_version_starts(
    executed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["far-node", "start", "--auto-update"])
    with pytest.raises(Executed) as started:
        run(child("raise SystemExit(0)"), updater=Update(works=True))
    assert started.value.args[0][1:] == ["-m", "node_runner.cli", "start", "--auto-update"]


@pytest.mark.parametrize("works", [True, False])
def test_a_parent_that_is_asked_to_end_while_pip_runs_ends(executed: None, works: bool) -> None:
    def ask_to_end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    node = child("raise SystemExit(0)")
    assert run(node, updater=Update(works=works, meanwhile=ask_to_end)) == 0
    assert node.started_at == 0  # it never was


def test_a_drain_while_pip_runs_is_not_forgotten(executed: None) -> None:
    def drain() -> None:
        asking = threading.Thread(target=control_socket.ask_running_nodes, args=("drain",))
        asking.start()
        asking.join()

    assert run(child("raise SystemExit(0)"), updater=Update(works=True, meanwhile=drain)) == 0
