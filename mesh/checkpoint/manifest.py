"""What a published checkpoint consists of, and the SHA-256 of each file and each tensor.

A hub knows the hash of a whole file only. A node fetches ranges, so it needs one for each tensor.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from mesh import json_text
from mesh.checkpoint.safetensors_header import (
    BITS,
    LENGTH_BYTES,
    MAX_DIMENSIONS,
    Tensor,
    bytes_of,
    header_length,
    parse_header,
)
from mesh.errors import WeightsRefused

NAME = "far-mesh-manifest.json"
"""Of the file that lies beside the checkpoint's own."""

VERSION = 1

MAX_BYTES = 64 * 2**20
"""A model of 90,000 tensors (many experts) has a manifest of 20 MB."""

PUBLISHED = (".json", ".safetensors")
"""Ends of the names of files that belong to a checkpoint."""

BUFFER = 2**20

_SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class File:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HashedTensor:
    """``start`` and ``end`` as in :class:`mesh.checkpoint.safetensors_header.Tensor`."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Files by name, tensors by name."""

    model_id: str
    files: dict[str, File]
    tensors: dict[str, HashedTensor]

    def to_bytes(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":")).encode()


def read_manifest(content: bytes) -> Manifest:
    """
    Raises:
        WeightsRefused: not a manifest, or one that does not agree with itself.
    """
    try:
        told = json_text.loads(content)
        if told["version"] != VERSION:
            raise WeightsRefused(f"The manifest is of version {told['version']}, not {VERSION}.")
        files = {_safe(name): _file(entry) for name, entry in told["files"].items()}
        tensors = {name: _hashed(entry, files) for name, entry in told["tensors"].items()}
        return Manifest(str(told["model_id"]), files, tensors)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsRefused(f"The manifest is broken ({type(error).__name__}).") from None


def is_safe_name(name: str) -> bool:
    """Whether a file's name, from somebody else's list, stays within its folder."""
    return all(map(_SAFE_PART.fullmatch, name.split("/")))


def make_manifest(
    folder: Path, model_id: str, progress: Callable[[int], None] = lambda _: None
) -> Manifest:
    """Read a checkpoint's files, each once.

    Args:
        folder: Of `config.json` and one or more `.safetensors`.
        progress: Called with how many bytes were read.

    Raises:
        WeightsRefused: no checkpoint, a broken file, or a tensor in two of them.
    """
    if not (folder / "config.json").is_file():
        raise WeightsRefused(f"{folder} has no config.json: it is no checkpoint.")
    files: dict[str, File] = {}
    tensors: dict[str, HashedTensor] = {}
    for path in published_files(folder):
        with path.open("rb") as opened:
            if path.suffix == ".safetensors":
                hashed, found = _hash_tensors(opened, path, progress)
                if double := found.keys() & tensors.keys():
                    raise WeightsRefused(f"Tensor {min(double)} is in two files of {folder}.")
                tensors |= found
            else:
                whole = hashlib.sha256()
                for piece in _pieces(opened, path.stat().st_size, progress):
                    whole.update(piece)
                hashed = whole.hexdigest()
        files[path.name] = File(path.stat().st_size, hashed)
    if not tensors:
        raise WeightsRefused(f"{folder} has no tensors in .safetensors files.")
    return Manifest(model_id, files, tensors)


def published_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that nodes may want, by name."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.suffix in PUBLISHED
        and path.name != NAME
        and is_safe_name(path.name)
    ]


def _hash_tensors(
    opened: IO[bytes], path: Path, progress: Callable[[int], None]
) -> tuple[str, dict[str, HashedTensor]]:
    size = path.stat().st_size
    whole = hashlib.sha256()
    first = opened.read(LENGTH_BYTES)
    header = opened.read(header_length(first, size))
    whole.update(first + header)
    progress(len(first) + len(header))
    found = {}
    tensors = parse_header(header, size)
    for name in sorted(tensors, key=lambda name: (tensors[name].start, tensors[name].end)):
        tensor: Tensor = tensors[name]
        own = hashlib.sha256()
        for piece in _pieces(opened, tensor.size, progress):
            own.update(piece)
            whole.update(piece)
        found[name] = HashedTensor(
            path.name, tensor.dtype, tensor.shape, tensor.start, tensor.end, own.hexdigest()
        )
    return whole.hexdigest(), found


def _pieces(opened: IO[bytes], size: int, progress: Callable[[int], None]) -> Iterator[bytes]:
    while size:
        piece = opened.read(min(size, BUFFER))
        if not piece:
            raise WeightsRefused(f"{opened.name} became shorter while it was read.")
        size -= len(piece)
        progress(len(piece))
        yield piece


def _safe(name: str) -> str:
    if not is_safe_name(name):
        raise ValueError("name")
    return name


def _file(entry: Any) -> File:
    return File(_count(entry["size"]), _hash(entry["sha256"]))


def _hashed(entry: Any, files: dict[str, File]) -> HashedTensor:
    shape = tuple(_count(size) for size in entry["shape"])
    start, end = _count(entry["start"]), _count(entry["end"])
    if entry["dtype"] not in BITS or len(shape) > MAX_DIMENSIONS:
        raise ValueError("tensor")
    if end - start != bytes_of(entry["dtype"], shape) or end > files[entry["file"]].size:
        raise ValueError("place")
    return HashedTensor(entry["file"], entry["dtype"], shape, start, end, _hash(entry["sha256"]))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("number")
    return value


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("hash")
    return value
