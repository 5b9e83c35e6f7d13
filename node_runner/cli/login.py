"""`far-node login` and `logout`."""

import re
import socket
from contextlib import suppress
from typing import Annotated

import typer
from rich.markup import escape
from rich.panel import Panel

from mesh.node_api import MAX_MACHINE_NAME
from node_runner.cli import credentials, options
from node_runner.cli.console import console, fail
from node_runner.machine import login_file
from node_runner.platform_client import device_login
from node_runner.platform_client.errors import PlatformError
from node_runner.platform_client.http import client


def login(
    discovery: options.Discovery = None,
    keyfile: options.Keyfile = None,
    machine: Annotated[
        str | None, typer.Option(help="What to call this machine; its host name, if not given.")
    ] = None,
) -> None:
    """Link this machine to your wallet, whose key stays where it is.

    Shows an address and a code. Open the address in any browser with a wallet, on a phone too,
    compare the code, and sign. [bold]far-node login --discovery https://...[/]

    On a server without a browser [bold]far-node login --keyfile wallet.json[/] signs by itself;
    the file is not needed after that.
    """
    previous = credentials.saved_login()
    url = credentials.platform_of(discovery, previous)
    if url is None:
        raise fail("Which platform? far-node login --discovery https://...")
    name = machine or _host_name()
    key = None if keyfile is None else credentials.unlock(keyfile)

    try:
        with client(url) as http:

            def show(prompt: device_login.DevicePrompt) -> None:
                if key is None:
                    _show(prompt)
                else:
                    device_login.approve(http, prompt.user_code, name, key)

            made = device_login.log_in(http, name, show)
        login_file.save(made)
    except (PlatformError, login_file.LoginFailed) as error:
        raise fail(str(error)) from None
    except OSError as error:
        raise fail(f"Cannot keep the login: {error}.") from None
    if previous is not None:
        with suppress(PlatformError):  # then it stays in the wallet's list of machines
            _revoke(previous)
    who = escape(f"{made.machine} registers nodes for {made.wallet_address}.")
    console.print(f"[green]Logged in.[/] {who}")
    console.print("Next: [bold]far-node doctor[/], then [bold]far-node start --model MODEL[/].")


def logout() -> None:
    """Revoke this machine's token, and forget it. Its nodes leave the routes."""
    saved = credentials.saved_login()
    if saved is None:
        console.print("This machine is not logged in.")
        return
    try:
        revoked = _revoke(saved)
    except PlatformError as error:
        raise fail(f"{error} The token is still valid; try again later.") from None
    login_file.delete()
    console.print("Logged out." if revoked else "Logged out. The platform knew of no such token.")


def _revoke(login: login_file.MachineLogin) -> bool:
    with client(login.discovery) as http:
        return device_login.revoke(login, http)


def _show(prompt: device_login.DevicePrompt) -> None:
    url, code = escape(prompt.url_with_code), escape(prompt.user_code)
    console.print(
        Panel(
            f"Open   [bold]{url}[/]\nCode   [bold]{code}[/]",
            title="Let this machine in",
            subtitle="in a browser with your wallet, here or on another device",
            expand=False,
            padding=(1, 3),
        ),
        soft_wrap=True,
    )
    console.print(f"Waiting for {prompt.expires_in // 60} minutes. Ctrl-C gives up.")


def _host_name() -> str:
    """The host's name, in the letters that a machine's name may have."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).lstrip("._-")
    return plain[:MAX_MACHINE_NAME] or "machine"
