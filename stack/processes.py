"""The processes of a stack: started with a log each, watched, and stopped without remains."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stack.servers import StackError

STOP_TIMEOUT = 15.0
"""Seconds that a process gets to stop by itself."""

POLL_SECONDS = 0.5
"""Seconds between polls for processes that died."""


@dataclass
class ManagedProcess:
    """A process, how it was started, and where it logs."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        self.process.terminate()
        try:
            self.process.wait(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Processes:
    """Children by name, in the order of their start."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.children: dict[str, ManagedProcess] = {}

    def start_python(
        self, name: str, arguments: list[str], environment: Mapping[str, str]
    ) -> ManagedProcess:
        """A process of this interpreter."""
        return self.start(name, [sys.executable, *arguments], environment)

    def start(
        self, name: str, command: list[str], environment: Mapping[str, str]
    ) -> ManagedProcess:
        """A process; ``environment`` comes on top of ours."""
        path = self._logs / f"{name}.log"
        with path.open("ab") as log, _uninterrupted():
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is for the supervisor: it stops the rest in order
            )
            child = ManagedProcess(name, command, environment, process, path)
            self.children[name] = child
        return child

    def check(self) -> None:
        """
        Raises:
            StackError: a process has ended; the error shows the end of its log.
        """
        for child in self.children.values():
            status = child.process.poll()
            if status is not None:
                raise StackError(f"{child.name} ended with exit code {status}:\n{child.tail()}")

    def watch(self, report: Callable[[str], None], *, vital: Collection[str]) -> None:
        """Until interrupted: start again what dies.

        Raises:
            StackError: a vital process died; what it held is gone.
        """
        while True:
            for child in list(self.children.values()):
                status = child.process.poll()
                if status is None:
                    continue
                if child.name in vital:
                    raise StackError(f"{child.name} died (exit {status}).\n{child.tail()}")
                report(f"{child.name} died (exit {status}); starting it again. Log: {child.log}")
                self.start(child.name, child.command, child.environment)
            time.sleep(POLL_SECONDS)

    def kill(self, name: str) -> None:
        """`kill -9`, as the world does."""
        child = self.children.pop(name)
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()

    def end(self, name: str) -> None:
        """SIGTERM and time to finish, as an operator does."""
        self.children.pop(name).stop()

    def stop(self, *, last: Collection[str]) -> None:
        """Stop all, at the same time, but those in ``last``: the others need them to finish."""
        for child in self.children.values():
            if child.name not in last:
                child.process.terminate()
        for child in reversed(self.children.values()):
            child.stop()
        self.children.clear()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM count at the end: until a process that was started is known as ours."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for arrived in came[:1]:
        signal.raise_signal(arrived)
