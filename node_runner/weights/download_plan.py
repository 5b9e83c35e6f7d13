"""Which bytes of which files a span needs, and where they go in its own file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mesh import json_text
from mesh.checkpoint.manifest import is_safe_name
from mesh.checkpoint.safetensors_header import (
    LENGTH_BYTES,
    Tensor,
    build_header,
    header_length,
    parse_header,
)
from mesh.errors import WeightsMissing, WeightsRefused
from node_runner.weights.source import Source, Version

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

CHUNK = 32 * 2**20
"""Bytes of one request: few of them, and little to fetch again after a kill."""


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of the span in a file of its source; ``sha256``: of its bytes, where known."""

    file: str
    tensor: Tensor
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """``size`` bytes that go to byte ``at`` of the span's file."""

    size: int
    at: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes ``[start, end)`` of a source's file, one part after the other."""

    file: str
    start: int
    end: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """``header``: the beginning of the span's file. ``size``: of all of it, in bytes.
    ``hashes``: (start, end, SHA-256, the tensor's name at its source), by start."""

    header: bytes
    size: int
    chunks: list[Chunk]
    versions: dict[str, Version]
    hashes: list[tuple[int, int, str, str]]


def plan_download(source: Source, renamed: Callable[[str], str | None]) -> DownloadPlan:
    """Plan the download of a span's file.

    Args:
        source: A checkpoint, in one file or in several with an index.
        renamed: A tensor's name in the span; none if it is not the span's.

    Raises:
        WeightsError: it cannot be read, or is not what it has to be.
    """
    wanted, versions = _find(source, renamed)
    if not wanted:
        raise WeightsRefused(f"{source.name} has no tensors of these layers.")
    names = {name: renamed(name) or name for name in wanted}
    if len(set(names.values())) < len(names):
        raise WeightsRefused(f"{source.name} has two tensors of one name.")
    header = build_header(
        {names[name]: (one.tensor.dtype, one.tensor.shape) for name, one in wanted.items()}
    )
    size = len(header) + sum(one.tensor.size for one in wanted.values())
    targets = parse_header(header[LENGTH_BYTES:], size)
    at = {name: targets[new].start for name, new in names.items()}
    hashes = sorted(
        (at[name], at[name] + one.tensor.size, one.sha256, name)
        for name, one in wanted.items()
        if one.sha256 is not None
    )
    return DownloadPlan(header, size, _chunks(wanted, at, CHUNK), versions, hashes)


def _find(
    source: Source, renamed: Callable[[str], str | None]
) -> tuple[dict[str, SourceTensor], dict[str, Version]]:
    if source.manifest is not None:
        return _from_manifest(source, renamed)
    try:
        index = json_text.loads(source.read_small(INDEX))["weight_map"]
        shards = {name: shard for name, shard in index.items() if renamed(name)}
        files = sorted(set(shards.values()))
        if not all(isinstance(file, str) and is_safe_name(file) for file in files):
            raise ValueError("name")
    except WeightsMissing:
        shards, files = {}, [SINGLE]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsRefused(
            f"The index of {source.name} is broken ({type(error).__name__})."
        ) from None
    wanted: dict[str, SourceTensor] = {}
    versions: dict[str, Version] = {}
    for file in files:
        versions[file], tensors = _read_header(source, file)
        for name, tensor in tensors.items():
            if renamed(name) and shards.get(name, file) == file:
                wanted[name] = SourceTensor(file, tensor, None)
    if missing := shards.keys() - wanted.keys():
        raise WeightsRefused(f"{source.name} has no tensor {min(missing)}, which its index names.")
    return wanted, versions


def _from_manifest(
    source: Source, renamed: Callable[[str], str | None]
) -> tuple[dict[str, SourceTensor], dict[str, Version]]:
    """The span's tensors by the manifest, for which no header has to be fetched."""
    assert source.manifest is not None
    wanted = {
        name: SourceTensor(one.file, Tensor(one.dtype, one.shape, one.start, one.end), one.sha256)
        for name, one in source.manifest.tensors.items()
        if renamed(name)
    }
    files = source.manifest.files
    versions = {
        file: Version(files[file].size, files[file].sha256)
        for file in sorted({one.file for one in wanted.values()})
    }
    return wanted, versions


def _read_header(source: Source, file: str) -> tuple[Version, dict[str, Tensor]]:
    version, first = source.head(file, LENGTH_BYTES)
    end = LENGTH_BYTES + header_length(first, version.size)
    header = b"".join(source.stream(file, version, LENGTH_BYTES, end))
    return version, parse_header(header, version.size)


def _chunks(wanted: Mapping[str, SourceTensor], at: Mapping[str, int], longest: int) -> list[Chunk]:
    """The requests: neighbours in one, none with more than ``longest`` bytes."""
    chunks: list[Chunk] = []
    file, start, end, parts = "", 0, 0, list[Part]()

    def close() -> None:
        if parts:
            chunks.append(Chunk(file, start, end, tuple(parts)))
            parts.clear()

    for name, one in sorted(wanted.items(), key=lambda item: (item[1].file, item[1].tensor.start)):
        if (one.file, one.tensor.start) != (file, end):
            close()
            file, start, end = one.file, one.tensor.start, one.tensor.start
        offset = at[name]
        while end < one.tensor.end:
            if end - start == longest:
                close()
                start = end
            size = min(one.tensor.end - end, longest - (end - start))
            parts.append(Part(size, offset))
            end += size
            offset += size
    close()
    return chunks
