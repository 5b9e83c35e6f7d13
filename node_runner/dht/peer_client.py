"""A client of the DHT peer's process, which it starts when needed and asks with a time limit."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from mesh.dht.installation import hivemind_missing

ANSWER_TIMEOUT = 60.0
"""Seconds that the process gets to answer: on a busy machine its start alone takes many."""

STOP_TIMEOUT = 5.0
"""Seconds that it gets to stop by itself."""


class DhtUnavailable(Exception):
    """The DHT cannot be asked now; the message says why."""


@dataclass(frozen=True, slots=True)
class DhtEndpoint:
    """Where the DHT is, and whose word counts there (an Ed25519 key in hex)."""

    peers: tuple[str, ...]
    operator_key: str


class PeerClient:
    """A client of the DHT peer's process, which it starts when needed. Not thread-safe."""

    def __init__(self, endpoint: DhtEndpoint) -> None:
        self._endpoint = endpoint
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return None if self._process is None else self._process.pid

    def ask(self, command: dict[str, Any], *, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """Have the DHT peer carry a command out; returns the peer's answer.

        Raises:
            DhtUnavailable: no answer within ``timeout`` seconds, the process died, or it failed.
        """
        process = self._started()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            answer = _line(process, timeout)
        except (OSError, ValueError) as error:
            self.close()
            raise DhtUnavailable(f"The DHT's process: {error}") from None
        if "failed" in answer:
            raise DhtUnavailable(str(answer["failed"]))
        return answer

    def close(self) -> None:
        """End the process, and what it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None:
            return self._process
        if reason := hivemind_missing("far-node"):
            raise DhtUnavailable(reason)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "node_runner.dht.peer_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the node, which then ends this one
            # It computes nothing, and must take neither the GPU nor its memory.
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        endpoint = {
            "peers": list(self._endpoint.peers),
            "operator_key": self._endpoint.operator_key,
        }
        with suppress(OSError):  # then the command fails, too
            self._process.stdin.write(json.dumps(endpoint) + "\n")
        return self._process


def _line(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    """The next line of a process's output, as JSON.

    Raises:
        ValueError: none came, or it is no JSON.
    """
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout)
    if not ready:
        raise ValueError(f"no answer within {timeout:.0f} s")
    line = process.stdout.readline()
    if not line:
        raise ValueError("it has died")
    answer: dict[str, Any] = json.loads(line)
    return answer


def find_urls(endpoint: DhtEndpoint, *, timeout: float = ANSWER_TIMEOUT) -> Sequence[str]:
    """The platform's URLs, as the operator signed them in the DHT; empty if it does not say.

    Raises:
        DhtUnavailable: the DHT cannot be asked.
    """
    with closing(PeerClient(endpoint)) as peer:
        return list(peer.ask({"do": "find"}, timeout=timeout)["urls"])
