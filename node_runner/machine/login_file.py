"""The machine's token: got by showing a code to its owner, kept in a file only he may read."""

import json
from dataclasses import asdict, dataclass

from node_runner.machine import directories

FILE_NAME = "login.json"


class LoginFailed(Exception):
    """No token; the message says why."""


@dataclass(frozen=True, slots=True)
class MachineLogin:
    """What this machine may do, where, and for whom."""

    discovery: str
    wallet_address: str
    machine: str
    machine_id: str
    token: str


def load() -> MachineLogin | None:
    """The login of this machine; none if there is none.

    Raises:
        LoginFailed: the file is damaged.
    """
    file = directories.config() / FILE_NAME
    try:
        return MachineLogin(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise LoginFailed(f"Cannot read {file} ({error}). Log in again: far-node login.") from None


def save(login: MachineLogin) -> None:
    """Keep it for later starts, with mode 0600."""
    directories.write_secret(directories.config() / FILE_NAME, json.dumps(asdict(login)))


def delete() -> None:
    (directories.config() / FILE_NAME).unlink(missing_ok=True)
