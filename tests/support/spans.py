"""Spans of a checkpoint, fetched and copied."""

from pathlib import Path

import pytest

from mesh.checkpoint.safetensors_header import LENGTH_BYTES
from mesh.errors import (
    MeshError,
)
from node_runner.engine.model.span_checkpoint import prepare_span
from tests.support.file_server import FileServer

CHUNK = 50_000
"""Bytes that a node fetches at once in these tests."""

ONE_FILE_IS_SLOW = pytest.mark.parametrize(
    "folder", [pytest.param("one file", marks=pytest.mark.slow), "shards"], indirect=True
)
"""For tests of processes, each of which imports torch."""


def fetched(server: FileServer, tmp_path: Path, layers: tuple[int, int] = (1, 5)) -> Path:
    """The span, from the server."""
    made, _ = prepare_span(server.url, layers=layers, edge=layers[0] == 0, cache=tmp_path / "spans")
    return made


def copied(folder: Path, tmp_path: Path, layers: tuple[int, int] = (1, 5)) -> Path:
    """The span, from the folder that the server serves."""
    made, _ = prepare_span(
        str(folder), layers=layers, edge=layers[0] == 0, cache=tmp_path / "copied"
    )
    return made


def same(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def data_bytes(span: Path) -> int:
    """Of its tensors."""
    content = (span / "model.safetensors").read_bytes()
    return len(content) - LENGTH_BYTES - int.from_bytes(content[:LENGTH_BYTES], "little")


def refuse(server: FileServer, tmp_path: Path, error: type[MeshError], match: str) -> None:
    with pytest.raises(error, match=match):
        fetched(server, tmp_path)
    assert not list((tmp_path / "spans").glob("[!.]*")), "nothing that could be taken for a span"
