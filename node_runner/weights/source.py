"""The interface of every source of weights, and the source that is a folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mesh.checkpoint.manifest import Manifest
from mesh.errors import WeightsChanged, WeightsMissing

MAX_SMALL_FILE = 64 * 2**20
"""Bytes of a configuration, a tokenizer or an index; the largest known are half of that."""

BUFFER = 2**20
"""Bytes in memory for each range that is being fetched."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which content a file has: its size, and a ``tag`` that changes with the content: the server's
    ETag, a hash, or a time."""

    size: int
    tag: str


class Source(Protocol):
    """A checkpoint's files, wherever they are.

    All methods raise :class:`mesh.errors.WeightsError`, after they have tried again where a
    connection broke.
    """

    name: str
    """For people, and part of the names of checkpoints in the cache."""

    manifest: Manifest | None
    """Hashes of all tensors, where somebody made one."""

    def read_small(self, name: str) -> bytes:
        """The whole of a file that holds no weights.

        Raises:
            WeightsMissing: there is none of that name.
        """
        ...

    def head(self, name: str, length: int) -> tuple[Version, bytes]:
        """The version of a file as it is now, and its first bytes."""
        ...

    def stream(self, name: str, version: Version, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a file from ``start`` up to ``end``, in pieces.

        Raises:
            WeightsChanged: the file has another version now.
        """
        ...

    def close(self) -> None:
        """Close the connections: what other threads wait for ends soon, with an error.

        May be called again.
        """
        ...


class FolderSource:
    """A checkpoint on this machine's disks."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.manifest: Manifest | None = None
        self._folder = folder

    def read_small(self, name: str) -> bytes:
        return self._existing(name).read_bytes()

    def head(self, name: str, length: int) -> tuple[Version, bytes]:
        path = self._existing(name)
        with path.open("rb") as opened:
            return self._version(path), opened.read(length)

    def stream(self, name: str, version: Version, start: int, end: int) -> Iterator[bytes]:
        path = self._existing(name)
        if self._version(path) != version:
            raise WeightsChanged(f"{path} changed while it was copied. Start again.")
        with path.open("rb") as opened:
            while start < end:
                piece = os.pread(opened.fileno(), min(BUFFER, end - start), start)
                if not piece:
                    raise WeightsChanged(f"{path} became shorter while it was copied.")
                start += len(piece)
                yield piece

    def close(self) -> None:
        """Nothing is open."""

    def _existing(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise WeightsMissing(f"{self._folder} has no {name}.")
        return path

    def _version(self, path: Path) -> Version:
        stat = path.stat()
        return Version(stat.st_size, f"{path.resolve()}:{stat.st_mtime_ns}")
