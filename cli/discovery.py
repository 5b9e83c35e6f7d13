"""`far-mesh discovery`: the discovery API and the DHT's peer beside it, each a process of its own.

Either may die: it is started again, and the other goes on.
"""

import signal
import subprocess
import sys
import threading
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mesh.dht.installation import hivemind_missing
from stack import servers

STOP_TIMEOUT = 15.0
"""Seconds that a process gets to end in order before it is killed."""

POLL_SECONDS = 0.2
"""Seconds between polls for a process that died."""

RESTART_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a process is started again: after its first death, the second and so on; the last
value repeats."""

STABLE_SECONDS = 60.0
"""Seconds of life after which the deaths of a process are counted from zero again."""

console = Console(highlight=False, stderr=True)


def discovery(
    host: Annotated[str, typer.Option(help="Address of the discovery API.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the discovery API.")] = 8001,
    print_peers: Annotated[
        bool, typer.Option("--print-peers", help="Show what nodes are started with, and end.")
    ] = False,
) -> None:
    """Run the discovery service: its API, and the DHT's peer (port 31337) with the mirror."""
    if reason := hivemind_missing("far-mesh"):
        console.print(f"[red]far-mesh:[/] {escape(reason)}", soft_wrap=True)
        raise typer.Exit(1)
    dht = [sys.executable, "-m", "discovery"]
    if print_peers:
        raise typer.Exit(subprocess.run([*dht, "--print-peers"], check=False).returncode)
    api = [sys.executable, *servers.api_command("api.discovery_app:create_app", port, host)]
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    keepers = [
        threading.Thread(target=_keep, args=(name, command, stop))
        for name, command in {"discovery API": api, "DHT peer": dht}.items()
    ]
    for keeper in keepers:
        keeper.start()
    for keeper in keepers:
        while keeper.is_alive():
            keeper.join(POLL_SECONDS)  # with a limit, so that signals are handled


def _keep(name: str, command: list[str], stop: threading.Event) -> None:
    """Run a command until told to stop; start it again whenever it ends."""
    deaths = 0
    while not stop.is_set():
        began = time.monotonic()
        process = subprocess.Popen(command, start_new_session=True)
        while process.poll() is None and not stop.wait(POLL_SECONDS):
            pass
        if stop.is_set():
            _end(process)
            return
        deaths = 0 if time.monotonic() - began > STABLE_SECONDS else deaths
        delay = RESTART_DELAYS[min(deaths, len(RESTART_DELAYS) - 1)]
        deaths += 1
        console.print(f"{name} ended (exit {process.returncode}); again in {delay:g} s.")
        stop.wait(delay)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
