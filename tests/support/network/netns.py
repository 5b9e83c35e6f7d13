"""A network namespace whose only link leads to this machine, and which takes no connection from
outside: what a provider's home router does."""

import contextlib
import itertools
import os
import shutil
import subprocess

_numbers = itertools.count()

TABLE = "100"
"""Of the routes that packets to the one port are sent by; all others find none."""


def why_not() -> str:
    """Why this machine can make no namespaces; empty if it can."""
    if shutil.which("ip") is None:
        return "there is no ip command (package iproute2)"
    try:
        with Namespace(port=1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"


class Namespace:
    """Made on entry, gone on exit. From inside, ``address`` is this machine, of which only ``port``
    can be reached; from outside, ``inside`` is what cannot be."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._name = f"far-{os.getpid()}-{next(_numbers)}"
        self._link = f"far{os.getpid() % 10**6}x{next(_numbers)}"[:14]
        subnet = f"10.231.{os.getpid() % 250}"
        host = 4 * (next(_numbers) % 60)
        self._subnet = f"{subnet}.{host}"
        self.address = f"{subnet}.{host + 1}"
        self.inside = f"{subnet}.{host + 2}"
        self.url = f"http://{self.address}:{port}"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Namespace":
        with contextlib.ExitStack() as undo:
            _run("ip", "netns", "add", self._name)
            undo.callback(_run, "ip", "netns", "del", self._name)  # its end of the link goes too
            self._in("ip", "link", "set", "lo", "up")
            _run(
                "ip", "link", "add", self._link, "type", "veth", "peer", "eth0", "netns", self._name
            )
            _run("ip", "addr", "add", f"{self.address}/30", "dev", self._link)
            _run("ip", "link", "set", self._link, "up")
            self._in("ip", "addr", "add", f"{self.inside}/30", "dev", "eth0")
            self._in("ip", "link", "set", "eth0", "up")
            self._close()
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def command(self, *command: str) -> list[str]:
        """How to run something inside."""
        return ["ip", "netns", "exec", self._name, *command]

    def cut(self) -> None:
        """Pull the cable."""
        _run("ip", "link", "set", self._link, "down")

    def mend(self) -> None:
        _run("ip", "link", "set", self._link, "up")

    def _close(self) -> None:
        """Out, only to the port. Who connects from outside is never answered: there is no route to
        him. (A firewall would do, but not every machine has one.)"""
        self._in("ip", "route", "del", f"{self._subnet}/30", "dev", "eth0")
        self._in("ip", "route", "add", self.address, "dev", "eth0", "table", TABLE)
        self._in("ip", "rule", "add", "ipproto", "tcp", "dport", str(self.port), "lookup", TABLE)

    def _in(self, *command: str) -> None:
        _run(*self.command(*command))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
