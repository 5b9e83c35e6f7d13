"""A node process for each device, watched.

The parent computes nothing. It also keeps a schedule, outside of which no process runs, so that the
GPUs are free, and installs updates between two starts.
"""

import ctypes
import datetime as dt
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import structlog

from node_runner.service import exit_codes
from node_runner.service.auto_update import Updater
from node_runner.service.control_socket import ControlSocket
from node_runner.service.schedule import Schedule

POLL_SECONDS = 0.5
"""Seconds between two checks of the children and of the clock."""

RESTART_DELAYS = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds until a child that crashed is started again; the last repeats."""

STABLE_SECONDS = 300.0
"""Seconds after which a child counts as stable: after its next crash the delays begin anew."""

DRAIN_TIMEOUT = 90.0
"""Seconds that children get to drain, more than each takes by itself. Then they are killed."""

FINAL_STATUSES = (0, exit_codes.USAGE_ERROR, exit_codes.CONFIG_ERROR)
"""Exit statuses of a node that drained as it was asked to, or has said what has to be changed."""

PARENT_VARIABLE = "FAR_NODE_PARENT"
KEPT_VARIABLES = ("FAR_NODE_PASSWORD", "FAR_NODE_STATE")
PR_SET_PDEATHSIG = 1

log = structlog.get_logger()


@dataclass
class DeviceProcess:
    """One device's node: how it is started, and its process while it runs."""

    device: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What others should not read, as they may a command line."""
    process: subprocess.Popen[bytes] | None = None
    crashes: int = 0
    started_at: float = 0.0
    restart_at: float = 0.0
    """When to start it (monotonic seconds), if it does not run."""
    draining: bool = False
    final_status: int | None = None
    """The exit status after which it is not started again."""

    @property
    def running(self) -> bool:
        return self.process is not None


def end_with_parent() -> None:
    """For a child to call: have it drain when the parent ends, however that ends (Linux only)."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it went away in between
        raise KeyboardInterrupt


def run(
    children: Sequence[DeviceProcess],
    *,
    identity: Mapping[str, Any],
    schedule: Schedule | None,
    updater: Updater | None,
) -> int:
    """Run the children until SIGTERM, Ctrl-C or `far-node drain`, or until none is left.

    Args:
        identity: What `far-node status` shows of the parent: model, wallet, platform.
        schedule: When to serve; none for always.
        updater: Installs newer versions; none for never.

    Returns:
        The exit status: 0 if it was asked to end, else the highest of the children's.
    """
    processes = DeviceProcesses(children, schedule, updater)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: processes.stop())
    with ControlSocket({"kind": "parent", **identity}, processes.stop) as control:
        control.describe = processes.describe
        processes.run()
    if processes.stopping:
        return 0
    if processes.updated:
        os.execv(sys.executable, [sys.executable, "-m", "node_runner.cli", *sys.argv[1:]])
    return max(child.final_status or 0 for child in children)


class DeviceProcesses:
    """The children of one parent: started, watched, drained. One thread calls `run`."""

    def __init__(
        self, children: Sequence[DeviceProcess], schedule: Schedule | None, updater: Updater | None
    ) -> None:
        self._children = children
        self._schedule = schedule
        self._updater = updater
        self._kill_at: float | None = None
        self._serving = False
        self.stopping = False  # no Event: a signal handler could wait for its lock for ever
        """Whether it was asked to end."""
        self.updated = False
        """Whether it ends so that a new version can start."""

    def stop(self) -> None:
        """Drain all and end; the second time, at once. Safe to call from a signal handler."""
        if self.stopping:
            self._kill_at = time.monotonic()
        self.stopping = True

    def describe(self) -> dict[str, Any]:
        """The part of the status that changes, for `far-node status`."""
        now = dt.datetime.now().astimezone()
        change = self._schedule and self._schedule.next_change(now).strftime("%H:%M")
        phase = "draining" if self.stopping else "serving" if self._serving else "waiting"
        return {
            "phase": phase,
            "until": change,
            "children": [
                {"device": child.device, "pid": child.process and child.process.pid}
                for child in self._children
            ],
        }

    def run(self) -> None:
        try:
            while not self._ended():
                self._poll()
                time.sleep(POLL_SECONDS)
        finally:
            for child in self._children:
                if child.process is not None:
                    child.process.kill()
                    child.process.wait()

    def _ended(self) -> bool:
        if any(child.running for child in self._children):
            return False
        all_final = all(child.final_status is not None for child in self._children)
        return self.stopping or self.updated or all_final

    def _poll(self) -> None:
        self._reap()
        serve = self._should_serve()
        if serve != self._serving:
            self._serving, self._kill_at = serve, None
            log.info("nodes_start" if serve else "nodes_drain", devices=len(self._children))
            if not serve:
                self._drain()
        now = time.monotonic()
        if self._kill_at is not None and now > self._kill_at:
            for child in self._children:
                if child.process is not None:
                    child.process.kill()
        for child in self._children:
            waits = not child.running and child.final_status is None
            if self._serving and waits and now >= child.restart_at:
                _start(child)

    def _should_serve(self) -> bool:
        """Whether nodes are to run now."""
        if self.stopping or not self._is_scheduled() or self._updating():
            return False
        return not self.stopping  # an update that failed took its time

    def _is_scheduled(self) -> bool:
        return self._schedule is None or self._schedule.includes(dt.datetime.now().astimezone())

    def _updating(self) -> bool:
        """Whether nodes have to end for an update; installs it once none runs any more."""
        if self._updater is None or not self._updater.ready():
            return False
        if any(child.running for child in self._children):
            return True
        self.updated = self._updater.install()
        return self.updated

    def _drain(self) -> None:
        self._kill_at = time.monotonic() + DRAIN_TIMEOUT
        for child in self._children:
            if child.process is not None:
                child.draining = True
                child.process.terminate()

    def _reap(self) -> None:
        for child in self._children:
            status = None if child.process is None else child.process.poll()
            if status is None:
                continue
            child.process = None
            if child.draining:
                child.draining = False
                continue
            if status in FINAL_STATUSES:
                child.final_status = status
                log.warning("node_ended", device=child.device, status=status)
                continue
            if time.monotonic() - child.started_at > STABLE_SECONDS:
                child.crashes = 0
            delay = RESTART_DELAYS[min(child.crashes, len(RESTART_DELAYS) - 1)]
            child.crashes += 1
            child.restart_at = time.monotonic() + delay
            log.warning("node_crashed", device=child.device, status=status, retry_in=delay)


def _start(child: DeviceProcess) -> None:
    child.process = subprocess.Popen(
        child.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(child),
        start_new_session=True,  # Ctrl-C is for the parent
    )
    child.started_at = time.monotonic()
    assert child.process.stdout is not None
    args = (child.device, child.process.stdout)
    threading.Thread(target=_forward_output, args=args, daemon=True).start()


def _environment(child: DeviceProcess) -> dict[str, str]:
    """A child's environment: this process's, without what the child's flags say, and with what they
    should not say."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FAR_NODE_") or name in KEPT_VARIABLES
    }
    own = {
        "FAR_NODE_CONFIG": os.devnull,
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    return {**inherited, **own, **child.environment}


def _forward_output(device: str, lines: IO[bytes]) -> None:
    """Print each line of a child, with its device before it."""
    with lines:
        for line in lines:
            text = line.decode(errors="replace").rstrip("\n")
            print(f"[{device}] {text}", file=sys.stderr, flush=True)
