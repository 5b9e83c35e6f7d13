"""The header of a safetensors file, read and written without loading a tensor.

A file is eight bytes that say how long the header is, the header (JSON: name → dtype, shape and
place), and the tensors' bytes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh import json_text
from mesh.errors import WeightsRefused

LENGTH_BYTES = 8

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""

MAX_DIMENSIONS = 16

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of a number, in the order of the format's own list: files have the last of it first, so that
every tensor is aligned."""

_ORDER = {dtype: place for place, dtype in enumerate(BITS)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """``start`` and ``end``: where its bytes lie, from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def header_length(first: bytes, file_size: int) -> int:
    """How long a file's header is, from the file's first eight bytes.

    Raises:
        WeightsRefused: longer than the format allows, or than the file.
    """
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if len(first) < LENGTH_BYTES or not 2 <= length <= min(MAX_HEADER, file_size - LENGTH_BYTES):
        raise WeightsRefused("This is no safetensors file: its header cannot be so long.")
    return length


def parse_header(header: bytes, file_size: int) -> dict[str, Tensor]:
    """Name → tensor, of a header without the eight bytes before it.

    Raises:
        WeightsRefused: not a header, or one whose tensors do not fill a file of this size exactly.
    """
    try:
        entries: dict[str, Any] = json_text.loads(header)
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(entry, len(header)) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsRefused(f"A safetensors header is broken ({type(error).__name__}).") from None
    end = LENGTH_BYTES + len(header)
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise WeightsRefused("A safetensors header has tensors that overlap, or gaps.")
        end = tensor.end
    if end != file_size:
        raise WeightsRefused(f"A safetensors header tells of {end} bytes; there are {file_size}.")
    return tensors


def build_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The beginning of a file of such tensors (name → dtype and shape), up to the first one's
    bytes; the same that the format's own library writes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in sorted(tensors, key=lambda name: (-_ORDER[tensors[name][0]], name)):
        dtype, shape = tensors[name]
        size = bytes_of(dtype, shape)
        entries[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [place, place + size],
        }
        place += size
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % LENGTH_BYTES)
    return len(header).to_bytes(LENGTH_BYTES, "little") + header


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """What a tensor takes in a file."""
    return -(-math.prod(shape) * BITS[dtype] // 8)


def _tensor(entry: Any, header: int) -> Tensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    numbers = (*shape, begin, end)
    if len(shape) > MAX_DIMENSIONS or not all(
        type(number) is int and number >= 0 for number in numbers
    ):
        raise ValueError("shape or place")
    if end - begin != bytes_of(dtype, shape):
        raise ValueError("size")
    data = LENGTH_BYTES + header
    return Tensor(dtype, shape, data + begin, data + end)
