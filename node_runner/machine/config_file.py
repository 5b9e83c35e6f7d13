"""`config.toml`: settings of `far-node`, instead of flags each time.

Each setting has the name of a flag of `far-node start`, without its dashes. A flag outweighs the
environment (``FAR_NODE_...``), and that the file.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node_runner.machine import directories

FILE_NAME = "config.toml"

Value = str | int | float | bool | list[Any]


class InvalidConfig(Exception):
    """The file cannot be used; the message says where it is wrong."""


def path() -> Path:
    return directories.config() / FILE_NAME


def read(file: Path, known: Mapping[str, bool]) -> dict[str, Any]:
    """The settings of a file; none if there is no file.

    Args:
        known: Names of settings, and whether each takes several values. One then stands for a
            list of one.

    Raises:
        InvalidConfig: not TOML, or a setting that is not known.
    """
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidConfig(f"Cannot read {file}: {error.strerror}.") from None
    try:
        found = {_plain(name): value for name, value in tomllib.loads(text).items()}
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{file} is not TOML: {error}.") from None
    for name, value in found.items():
        if name not in known or isinstance(value, dict):
            raise InvalidConfig(f"{file}: there is no setting {name!r}. See far-node start --help.")
        if known[name] and not isinstance(value, list):
            found[name] = [value]
    return found


def change(file: Path, name: str, value: Value | None) -> None:
    """Set one setting, or remove it. Other lines and their comments stay as they are."""
    lines = file.read_text().splitlines() if file.exists() else []
    mine = re.compile(rf"\s*{re.escape(name).replace('_', '[-_]')}\s*=")
    kept = [line for line in lines if not mine.match(line)]
    if value is not None:
        kept.append(f"{name} = {json.dumps(value)}")  # of these types, JSON is TOML too
    directories.write_secret(file, "".join(f"{line}\n" for line in kept))


def _plain(name: str) -> str:
    return name.replace("-", "_")
