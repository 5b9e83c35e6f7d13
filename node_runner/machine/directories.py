"""Directories of `far-node`: settings, login, running nodes' sockets; and files that are secret.

The folders are those of the XDG base directory specification.
"""

import os
from pathlib import Path


def config() -> Path:
    """The folder for what the owner chose: `config.toml`, `login.json`."""
    return _base("XDG_CONFIG_HOME", ".config") / "far-node"


def state() -> Path:
    """The folder for what identifies this machine. FAR_NODE_STATE names another folder."""
    chosen = os.environ.get("FAR_NODE_STATE")
    return Path(chosen) if chosen else _base("XDG_STATE_HOME", ".local/state") / "far-node"


def sockets() -> Path:
    """The folder of the sockets, one for each running node. Not under XDG_RUNTIME_DIR, which a
    system service of the same user does not see."""
    return state() / "run"


def make_private(folder: Path) -> Path:
    """The folder, made if it is not there, which only its owner may look into."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner may read: whole, or not at all."""
    make_private(file.parent)
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as opened:
            opened.write(text)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _base(variable: str, default: str) -> Path:
    chosen = os.environ.get(variable, "")
    return Path(chosen) if os.path.isabs(chosen) else Path.home() / default
