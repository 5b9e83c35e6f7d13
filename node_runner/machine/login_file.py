"""The machine's token on disk, in a file that only its owner may read."""

import json
from dataclasses import asdict, dataclass, field

from node_runner.machine import directories

FILE_NAME = "login.json"


class LoginFailed(Exception):
    """There is no token to use; the message says why."""


@dataclass(frozen=True, slots=True)
class MachineLogin:
    """The token by which a machine registers nodes: of which platform, and for which wallet.

    ``discovery``: the platform's URL. ``machine``: its name, as its owner chose it.
    """

    discovery: str
    wallet_address: str
    machine: str
    machine_id: str
    token: str = field(repr=False)


def load() -> MachineLogin | None:
    """The login of this machine; none if nobody has logged in.

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
    """Keep the login for later starts, with mode 0600."""
    directories.write_secret(directories.config() / FILE_NAME, json.dumps(asdict(login)))


def delete() -> None:
    (directories.config() / FILE_NAME).unlink(missing_ok=True)
