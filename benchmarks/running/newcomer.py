"""A node that joins a running mesh with `far-node start`, and the time that each phase took."""

import datetime as dt
import json
import secrets
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account

from benchmarks.running.token_times import supervised
from benchmarks.running.user import User
from stack.dev_chain_client import write_keystore
from stack.development_stack import NODES_LIMIT, DevelopmentStack

PROCESS_NAME = "newcomer"
POLL_SECONDS = 0.02
"""Seconds between polls of the nodes on the routes."""

NEW_TOKENS = 8

PHASES = {
    "imports": "process and imports",
    "registering": "registering",
    "fetching": "fetching its layers",
    "loading": "loading and warming up",
    "connecting": "relay, first heartbeat",
    "on_routes": "seen on the routes",
    "first_token": "first token through it",
}
"""In order; each begins where the one before it ends."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Seconds by phase, of :data:`PHASES`; bytes that were fetched, and layers that it was given.
    ``same``: whether its tokens are those of the node that was there before."""

    phases: dict[str, float]
    fetched: int
    layers: tuple[int, int]
    same: bool

    @property
    def seconds(self) -> float:
        """Seconds from the command to the first token."""
        return sum(self.phases.values())


@dataclass(frozen=True, slots=True)
class MachineDirectory:
    """The directory of a machine: its key, its identity and its cache of weights."""

    folder: Path

    def start(self, stack: DevelopmentStack) -> float:
        """Start `far-node` with a new wallet; returns when (Unix time, seconds)."""
        keyfile, password = self.folder / "wallet.json", secrets.token_hex(16)
        self.folder.mkdir(exist_ok=True)
        write_keystore(Account.create(), keyfile, password)
        command = [sys.executable, "-m", "node_runner.cli", "start"]
        command += ["--model", stack.plan.model_id, "--discovery", stack.plan.api_url]
        command += ["--keyfile", str(keyfile), "--cache", str(self.folder / "spans")]
        own = {
            "FAR_NODE_PASSWORD": password,
            "FAR_NODE_STATE": str(self.folder / "state"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "OMP_NUM_THREADS": "1",
        }
        began = time.time()
        stack.processes.start(PROCESS_NAME, command, own)
        return began


def join(
    stack: DevelopmentStack,
    user: User,
    directory: MachineDirectory,
    prompt: str,
    expected: list[str],
) -> Joined:
    """Have a new node serve layers that no other node serves, and end it again.

    Args:
        expected: The texts of the prompt's tokens.

    Raises:
        RuntimeError: the generation did not go through the node, or failed.
        StackError: the node's process ended.
    """
    before = active(stack)
    log = stack.plan.folder / "logs" / f"{PROCESS_NAME}.log"
    log.unlink(missing_ok=True)
    typed = directory.start(stack)
    (node_id,) = _newly(stack, before)
    on_routes = time.time()
    tokens, first, request_id = _generate(user, prompt)
    opened = supervised(stack, "route_opened", request_id)
    if node_id not in opened[-1]["nodes"]:
        raise RuntimeError(f"{request_id} went through {opened[-1]['nodes']}, not {node_id}.")
    stack.processes.end(PROCESS_NAME)
    events = logged(log.read_text().splitlines())
    start, end = events["node_registered"]["layers"]
    return Joined(
        phases=phases(typed, events, on_routes, first),
        fetched=events.get("weights_ready", {"bytes": 0})["bytes"],
        layers=(start, end),
        same=tokens == expected,
    )


def texts(user: User, prompt: str) -> list[str]:
    """The texts of a prompt's tokens, as the mesh serves them now."""
    return _generate(user, prompt)[0]


def active(stack: DevelopmentStack) -> set[str]:
    """Ids of the nodes on the routes."""
    with httpx.Client(base_url=stack.plan.api_url) as http:
        return _active(http, stack)


def logged(lines: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The first event of each name in a node's log; ``at`` is its Unix time. Libraries' lines are
    no events."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.startswith("{"):
            event = json.loads(line)
            event["at"] = dt.datetime.fromisoformat(event["timestamp"]).timestamp()
            found.setdefault(event["event"], event)
    return found


def phases(
    typed: float, events: Mapping[str, Mapping[str, Any]], on_routes: float, first: float
) -> dict[str, float]:
    """Seconds of each of :data:`PHASES`. Without `weights_ready`, nothing was fetched, and reading
    the cache counts as loading.

    Args:
        typed: When the command was; Unix time, as all others.
        events: The node's, as :func:`logged` gives them.
        on_routes: When discovery named the node.
        first: When the user had a token.
    """
    registered = events["node_registered"]["at"]
    ends = [
        events["node_starting"]["at"],
        registered,
        events.get("weights_ready", {"at": registered})["at"],
        events["span_loaded"]["at"],
        events["node_started"]["at"],
        # The node's heartbeat is answered at the same time as it can be seen.
        max(on_routes, events["node_started"]["at"]),
        first,
    ]
    begins = [typed, *ends[:-1]]
    return {name: end - begin for name, begin, end in zip(PHASES, begins, ends, strict=True)}


def _newly(stack: DevelopmentStack, before: set[str]) -> set[str]:
    deadline = time.monotonic() + NODES_LIMIT
    with httpx.Client(base_url=stack.plan.api_url) as http:
        while not (new := _active(http, stack) - before):
            stack.processes.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"The new node is not on the routes after {NODES_LIMIT:.0f} s.")
            time.sleep(POLL_SECONDS)
    return new


def _active(http: httpx.Client, stack: DevelopmentStack) -> set[str]:
    answer = http.get(f"/api/discovery/nodes/active/{stack.plan.model_id}").raise_for_status()
    return {node["node_id"] for node in answer.json()["nodes"]}


def _generate(user: User, prompt: str) -> tuple[list[str], float, str]:
    """Texts of the tokens, when the user had the first (Unix time), and the request's id."""
    tokens: list[str] = []
    first = 0.0
    with user.streaming(prompt, NEW_TOKENS) as lines:
        for line in lines:
            first = first or time.time()
            event = json.loads(line.removeprefix("data: "))
            if event.get("error"):
                raise RuntimeError(f"The generation failed: {event}")
            if event.get("done"):
                return tokens, first, event["request_id"]
            tokens.append(event["token"])
    raise RuntimeError("The stream ended before the generation did.")
