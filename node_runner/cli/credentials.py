"""Which wallet is paid, and what proves it: a login, or a key file."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import typer

from node_runner.cli.console import fail
from node_runner.machine import keystore, login_file


@dataclass(frozen=True, slots=True)
class WalletProof:
    """A wallet, the platform's URL, and ``secret``: the wallet's private key, or the machine's
    token."""

    wallet: str
    discovery: str | None
    secret: bytes | str = field(repr=False)


def choose(
    wallet: str | None, discovery: str | None, keyfile: Path | None, *, lookup: bool = False
) -> WalletProof:
    """The credential to register with. A key file outweighs a login.

    ``lookup``: the platform's URL need not be known, since the DHT has it.
    """
    login = saved_login()
    discovery = platform_of(discovery, login)
    if discovery is None and not (lookup and keyfile):
        raise fail(
            "Which platform? Run far-node login --discovery URL, or give --keyfile and --discovery."
        )
    if keyfile is not None:
        key = unlock(keyfile)
        owner = keystore.wallet_address(key)
        if wallet is not None and owner.lower() != wallet.lower():
            raise fail(f"{keyfile} belongs to {owner}, not to --wallet {wallet}.")
        return WalletProof(owner, discovery, key)
    if login is None:
        raise fail(
            "This machine is not logged in. Run far-node login --discovery URL, or give --keyfile."
        )
    if (discovery or "").rstrip("/") != login.discovery:
        raise fail(
            f"This machine is logged in at {login.discovery}, not at {discovery}. Log in there "
            f"(far-node login --discovery {discovery}), or give --keyfile."
        )
    if wallet is not None and wallet.lower() != login.wallet_address:
        raise fail(
            f"This machine was let in by {login.wallet_address}, not by --wallet {wallet}. Leave "
            "--wallet out, or log in again with that wallet."
        )
    return WalletProof(login.wallet_address, login.discovery, login.token)


def saved_login() -> login_file.MachineLogin | None:
    try:
        return login_file.load()
    except login_file.LoginFailed as error:
        raise fail(str(error)) from None


def platform_of(discovery: str | None, login: login_file.MachineLogin | None) -> str | None:
    """The platform's URL: as given, else of the login."""
    return discovery or (None if login is None else login.discovery)


def unlock(keyfile: Path) -> bytes:
    """A key file's private key. Asks for the password, where the environment has none and there is
    a terminal; keeps it in the environment, for the nodes that this process starts."""
    password = os.environ.get("FAR_NODE_PASSWORD")
    if password is None and sys.stdin.isatty():
        password = typer.prompt(f"Password of {keyfile}", hide_input=True, err=True)
        os.environ["FAR_NODE_PASSWORD"] = password
    try:
        return keystore.unlock(keyfile, password or "")
    except keystore.KeystoreError as error:
        raise fail(str(error)) from None
