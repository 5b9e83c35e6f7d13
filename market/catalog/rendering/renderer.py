"""Renders a chat template in processes that are ended when it takes too long or too much memory."""

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from weakref import finalize

from market.catalog.rendering import process
from market.errors import Unavailable

PROCESSES = 2
"""Texts that are rendered at once for a model, each in a process of 20 MB. A text takes about a
millisecond."""

ANSWER_SECONDS = 20.0
"""How long to wait for a process, whose own limit is that of the processor's time: longer than that
takes on a machine with much else to do."""

WAIT_SECONDS = 10.0
"""How long a text waits for one of the processes."""

RETRY_AFTER_SECONDS = 2

MAX_ANSWER_BYTES = 12 * process.MAX_TEXT_CHARS + 64
"""A character is two escapes of six bytes at most."""


class TemplateRefused(Exception):
    """The template ended with an error, or had to be ended. The message says why."""


class TemplateRenderer:
    """One template. Its processes start when they are needed, and end with the renderer."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._idle: list[_Process] = []
        self._slots = threading.BoundedSemaphore(PROCESSES)

    def check(self) -> None:
        """Compile the template, in a process that ends again.

        Raises:
            TemplateRefused: it does not compile.
        """
        self._ask(_Process(), None)

    def render(self, variables: Mapping[str, Any]) -> str:
        """A text of at most :data:`market.catalog.rendering.process.MAX_TEXT_CHARS`. Blocks for
        :data:`WAIT_SECONDS` and :data:`ANSWER_SECONDS` at most, mostly for a millisecond.

        Args:
            variables: What the template sees: JSON.

        Raises:
            TemplateRefused: by its own ``raise_exception``, by another error, or since it takes
                more time or memory than it may.
            Unavailable: all processes are taken.
        """
        if not self._slots.acquire(timeout=WAIT_SECONDS):
            raise Unavailable("Too many chats are being rendered.", retry_after=RETRY_AFTER_SECONDS)
        try:
            rendering = self._free_process()
            try:
                return self._ask(rendering, variables)
            finally:
                self._idle.append(rendering)
        finally:
            self._slots.release()

    def _free_process(self) -> "_Process":
        with suppress(IndexError):
            while True:
                found = self._idle.pop()
                if found.is_running:
                    return found
        return _Process()

    def _ask(self, rendering: "_Process", variables: Mapping[str, Any] | None) -> str:
        answer = rendering.ask({"template": self._template, "variables": variables})
        if answer is None:
            raise TemplateRefused(
                f"It takes more than {process.CPU_SECONDS} s of a processor, or more than "
                f"{process.MEMORY_BYTES // 2**20} MiB."
            )
        if "refused" in answer:
            raise TemplateRefused(answer["refused"])
        return answer["text"]


class _Process:
    """A process that renders a text at a time."""

    def __init__(self) -> None:
        # Not the environment, which has the operator's secrets: whatever a template could reach
        # here, it is alone with the messages. Of it, only what names the time zone.
        kept = {name: os.environ[name] for name in ("TZ", "TZDIR") if name in os.environ}
        self._popen = subprocess.Popen(
            [sys.executable, "-P", str(Path(process.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._end = finalize(self, _end, self._popen)

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def ask(self, job: Mapping[str, Any]) -> dict[str, str] | None:
        """The answer to a job; none if there is none in time. Then the process has ended, as with
        every error here: no later job gets the answer to this one."""
        stdin, stdout = self._popen.stdin, self._popen.stdout
        assert stdin is not None
        assert stdout is not None
        answer = None
        try:
            stdin.write(json.dumps(job).encode() + b"\n")
            stdin.flush()
            line = _line(stdout.fileno(), time.monotonic() + ANSWER_SECONDS)
            answer = None if line is None else cast(dict[str, str], json.loads(line))
        except BrokenPipeError:
            pass
        finally:
            if answer is None:
                self._end()
        return answer


def _line(file: int, deadline: float) -> bytes | None:
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            piece = os.read(file, 2**16)
            received += piece
            if not piece or len(received) > MAX_ANSWER_BYTES:
                return None
    return bytes(received)


def _end(popen: "subprocess.Popen[bytes]") -> None:
    popen.kill()
    with suppress(BrokenPipeError):
        popen.communicate()
