"""Where servers of the tests keep what is thrown away at the end."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = "/dev/shm"
ROOM = 2**30
"""Bytes that have to be free there; containers often have less than 64 MB."""


@contextmanager
def server_folder(prefix: str) -> Iterator[Path]:
    """A folder for servers, with a short path, since Unix sockets lie in it. In memory where there
    is room: a database is made and dropped there in a quarter of the time that a disk takes."""
    fits = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if fits else None))
    made.chmod(0o755)  # Postgres runs as a user of its own where the tests run as root
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
