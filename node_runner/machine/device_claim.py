"""A lasting name for a device, locked while used: so that the platform knows the node again."""

import fcntl
import os
import re
import secrets
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

DEVICE_ID = re.compile(r"[0-9a-f]{32}(\.\d+)?")


class ClaimError(Exception):
    """The state folder cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class DeviceClaim:
    """A name for one process on one GPU, held while ``lock`` is open."""

    device_id: str
    gpu_index: int
    lock: IO[str]

    def release(self) -> None:
        """Let another process be this device."""
        self.lock.close()


def claim(folder: Path, *, wallet: str, gpu_index: int) -> DeviceClaim:
    """This machine's name, made at random the first time.

    While another process of the wallet serves on the same GPU (or CPU), a second one is a device of
    its own: the machine's name and a number, the same whenever it is started beside the first.

    Raises:
        ClaimError: the folder cannot be written, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        machine = _machine_name(folder / "device_id")
        for number in count():
            lock = (folder / f"{wallet.lower()}-{gpu_index}-{number}.lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            return DeviceClaim(f"{machine}.{number}" if number else machine, gpu_index, lock)
    except OSError as error:
        raise ClaimError(f"Cannot write to {folder}: {error.strerror}.") from None
    raise AssertionError("numbers do not end")


def _machine_name(file: Path) -> str:
    """The name in the file. Of two processes that make it at once, the first one's counts."""
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_text(secrets.token_hex(16))
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
    name = file.read_text().strip()
    if not DEVICE_ID.fullmatch(name):
        raise ClaimError(f"{file} holds no machine's name. Delete it to get a new one.")
    return name
