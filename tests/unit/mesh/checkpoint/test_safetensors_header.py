"""Headers of safetensors files: the library's own are read, and ours are the library's."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mesh.checkpoint.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER,
    build_header,
    header_length,
    parse_header,
)
from mesh.errors import WeightsRefused

TENSORS = {
    "b.weight": torch.zeros(3, 5),
    "a.weight": torch.zeros(7, 2, dtype=torch.float16),
    "a.bias": torch.zeros((), dtype=torch.int64),
    "flags": torch.zeros(9, dtype=torch.bool),
    "brain": torch.zeros(2, 2, dtype=torch.bfloat16),
    "eight": torch.zeros(5, dtype=torch.float8_e4m3fn),
    "bytes": torch.zeros(3, dtype=torch.uint8),
    "ein Gewicht für ü": torch.zeros(1),
    "none": torch.zeros(0, 4),
}
NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
}


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file, metadata={"format": "pt"})
    return file.read_bytes()


def header_of(content: bytes) -> bytes:
    length = header_length(content[:LENGTH_BYTES], len(content))
    return content[LENGTH_BYTES : LENGTH_BYTES + length]


def test_what_the_library_writes_is_read(content: bytes) -> None:
    tensors = parse_header(header_of(content), len(content))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert {name: tensor.size for name, tensor in tensors.items()} == {
        name: tensor.nbytes for name, tensor in TENSORS.items()
    }


def test_our_header_is_the_librarys_to_the_byte(content: bytes) -> None:
    built = build_header(
        {name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    )
    assert content.startswith(built)
    assert len(content) == len(built) + sum(tensor.nbytes for tensor in TENSORS.values())


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"\xff",
        {"a": None},
        {"a": {}},
        {"a": entry(dtype="F31")},
        {"a": entry(shape=[2, 3])},
        {"a": entry(shape=[-2, -2])},
        {"a": entry(shape=[4.0])},
        {"a": entry(shape=[True, 4])},
        {"a": entry(shape=[1] * 17 + [4])},
        {"a": entry(data_offsets=[16, 0])},
        {"a": entry(data_offsets=[0])},
        {"a": entry(data_offsets=[16, 32])},
        {"a": entry(), "b": entry()},
        {"a": entry(), "b": entry(data_offsets=[8, 24])},
        {"a": entry(), "b": entry(data_offsets=[16, 32])},
        {"a": entry(shape=[10**30, 10**30])},
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_header_that_lies_is_refused(header: object) -> None:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    with pytest.raises(WeightsRefused):
        parse_header(content, LENGTH_BYTES + len(content) + 16)


def test_a_header_nested_without_end_is_refused() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own, which py-evm raises: no node has that
    try:
        with pytest.raises(WeightsRefused, match="MalformedJson"):
            parse_header(b"[" * 100_000, 100_024)
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("length", [0, 1, 93, MAX_HEADER + 1, 2**63])
def test_a_header_longer_than_its_file_is_refused(length: int) -> None:
    size = 100 if length < MAX_HEADER else 2**62
    with pytest.raises(WeightsRefused, match="so long"):
        header_length(length.to_bytes(LENGTH_BYTES, "little"), size)
