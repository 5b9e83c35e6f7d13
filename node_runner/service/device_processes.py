"""Several nodes under one command: a process for each device, started, watched and drained.

The parent computes nothing. It also keeps the hours of a schedule, in which a process that has
ended has given its GPU back, and installs updates between two starts.
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
"""Seconds between looks at the children and at the clock."""

RESTART_DELAYS = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds until a child that died is started again; the last repeats."""

STABLE_SECONDS = 300.0
"""Seconds after which a child counts as well: the next death waits a second again."""

DRAIN_LIMIT = 90.0
"""Seconds that children get to drain, more than each gives itself. Then they are killed."""

FINAL_STATUSES = (0, exit_codes.USAGE_ERROR, exit_codes.CONFIG_ERROR)
"""Exit statuses of a node that drained as it was asked to, or has said what has to be changed."""

PARENT_VARIABLE = "FAR_NODE_PARENT"
KEPT_VARIABLES = ("FAR_NODE_PASSWORD", "FAR_NODE_STATE")
PR_SET_PDEATHSIG = 1

log = structlog.get_logger()


@dataclass
class DeviceProcess:
    """One device's node: how it is started, and how it is."""

    device: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What others should not read, as they may a command line."""
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    started_at: float = 0.0
    start_at: float = 0.0
    """When to start it (monotonic seconds), if it does not run."""
    draining: bool = False
    ended: int | None = None
    """The exit status after which it is not started again."""

    @property
    def alive(self) -> bool:
        return self.process is not None


def end_with_parent() -> None:
    """Called by a child: drain when the parent is gone, however it ended (Linux only)."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it went away in between
        raise KeyboardInterrupt


def run(
    children: Sequence[DeviceProcess],
    *,
    about: Mapping[str, Any],
    hours: Schedule | None,
    updates: Updater | None,
) -> int:
    """Until SIGTERM, Ctrl-C or `far-node drain`, or until no child is left.

    Returns:
        The exit status: 0 if it was asked to end, else the worst of the children's.
    """
    fleet = DeviceProcesses(children, hours, updates)
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: fleet.stop())
    with ControlSocket({"kind": "parent", **about}, fleet.stop) as control:
        control.describe = fleet.describe
        fleet.run()
    if fleet.stopping:
        return 0
    if fleet.updated:
        os.execv(sys.executable, [sys.executable, "-m", "node_runner.cli", *sys.argv[1:]])
    return max(child.ended or 0 for child in children)


class DeviceProcesses:
    def __init__(
        self, children: Sequence[DeviceProcess], hours: Schedule | None, updates: Updater | None
    ) -> None:
        self._children = children
        self._hours = hours
        self._updates = updates
        self._kill_at: float | None = None
        self._open = False
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
        """For `far-node status`."""
        now = dt.datetime.now().astimezone()
        change = self._hours and self._hours.next_change(now).strftime("%H:%M")
        phase = "draining" if self.stopping else "serving" if self._open else "waiting"
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
                self._tend()
                time.sleep(POLL_SECONDS)
        finally:
            for child in self._children:
                if child.process is not None:
                    child.process.kill()
                    child.process.wait()

    def _ended(self) -> bool:
        if any(child.alive for child in self._children):
            return False
        gave_up = all(child.ended is not None for child in self._children)
        return self.stopping or self.updated or gave_up

    def _tend(self) -> None:
        self._reap()
        wanted = self._wanted()
        if wanted != self._open:
            self._open, self._kill_at = wanted, None
            log.info("fleet_opens" if wanted else "fleet_drains", devices=len(self._children))
            if not wanted:
                self._drain()
        now = time.monotonic()
        if self._kill_at is not None and now > self._kill_at:
            for child in self._children:
                if child.process is not None:
                    child.process.kill()
        for child in self._children:
            if self._open and not child.alive and child.ended is None and now >= child.start_at:
                _start(child)

    def _wanted(self) -> bool:
        """Whether nodes are to run now."""
        if self.stopping or not self._in_hours() or self._updating():
            return False
        return not self.stopping  # an update that failed took its time

    def _in_hours(self) -> bool:
        return self._hours is None or self._hours.open_at(dt.datetime.now().astimezone())

    def _updating(self) -> bool:
        """Whether to make room for an update; installs it once nothing runs any more."""
        if self._updates is None or not self._updates.ready():
            return False
        if any(child.alive for child in self._children):
            return True
        self.updated = self._updates.install()
        return self.updated

    def _drain(self) -> None:
        self._kill_at = time.monotonic() + DRAIN_LIMIT
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
                child.ended = status
                log.warning("node_ended", device=child.device, status=status)
                continue
            if time.monotonic() - child.started_at > STABLE_SECONDS:
                child.deaths = 0
            delay = RESTART_DELAYS[min(child.deaths, len(RESTART_DELAYS) - 1)]
            child.deaths += 1
            child.start_at = time.monotonic() + delay
            log.warning("node_died", device=child.device, status=status, again_in=delay)


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
    relay = threading.Thread(target=_relay, args=(child.device, child.process.stdout), daemon=True)
    relay.start()


def _environment(child: DeviceProcess) -> dict[str, str]:
    """Ours, without what the child's flags already say, and with what they should not."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FAR_NODE_") or name in KEPT_VARIABLES
    }
    told = {
        "FAR_NODE_CONFIG": os.devnull,
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    return {**ours, **told, **child.environment}


def _relay(device: str, lines: IO[bytes]) -> None:
    """Each line of a child, with its device before it."""
    with lines:
        for line in lines:
            text = line.decode(errors="replace").rstrip("\n")
            print(f"[{device}] {text}", file=sys.stderr, flush=True)
