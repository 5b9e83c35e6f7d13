"""Kills of a running mesh's processes at random, each started again as systemd would."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from stack.development_stack import DevelopmentStack
from stack.processes import ManagedProcess
from stack.servers import wait_for_redis

RESTART_SECONDS = 1.0
"""What passes before systemd starts a unit again (`RestartSec`)."""

KINDS = ("api", "worker", "node", "redis")
"""What may be killed, each kind as often as the others."""


@dataclass
class KillPlan:
    """``kills`` times `kill -9`, by ``seed``, with pauses of a second or so between them.

    Attributes:
        killed: How often each process was killed.
        died: Ends that were none of this plan's doing: name and exit status.
    """

    stack: DevelopmentStack
    seed: int
    kills: int
    killed: Counter[str] = field(default_factory=Counter)
    died: list[tuple[str, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._down: dict[str, tuple[ManagedProcess, float]] = {}
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep_running, daemon=True)
        self._lock = threading.Lock()

    def run(self) -> None:
        """Kill as planned, and return once everything runs again."""
        self._keeper.start()
        for _ in range(self.kills):
            time.sleep(self._random.uniform(0.5, 1.5))
            self._kill(self._random.choice(KINDS))
        while True:
            with self._lock:
                if not self._down:
                    return
            time.sleep(0.1)

    def stop(self) -> None:
        """Start nothing again from now on."""
        self._over.set()
        self._keeper.join()

    def _kill(self, kind: str) -> None:
        with self._lock:
            names = [name for name in self.stack.processes.children if name.startswith(kind)]
            if not names:
                return  # it is down already
            name = self._random.choice(sorted(names))
            child = self.stack.processes.children[name]
            self.stack.processes.kill(name)
            self.killed[kind] += 1
            self._down[name] = child, time.monotonic()

    def _keep_running(self) -> None:
        while not self._over.wait(0.1):
            with self._lock:
                for name, child in list(self.stack.processes.children.items()):
                    status = child.process.poll()
                    if status is not None:
                        self.died.append((name, status, child.tail(5)))
                        del self.stack.processes.children[name]
                        self._down[name] = child, time.monotonic()
                for name, (child, since) in list(self._down.items()):
                    if time.monotonic() - since >= RESTART_SECONDS:
                        self.stack.processes.start(name, child.command, child.environment)
                        del self._down[name]
                        if name == "redis":
                            wait_for_redis(self.stack.plan.redis_port)
