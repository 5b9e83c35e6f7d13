"""Log-probabilities of a token and of the likeliest in its place, packed.

Each is eight bytes, little-endian: the token id as a 32-bit integer and its natural log-probability
as a 32-bit float. The first is that of the token itself.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from mesh.wire.limits import MAX_TOP_LOGPROBS

_ENTRY = struct.Struct("<if")

MAX_LOGPROBS_BYTES = (1 + MAX_TOP_LOGPROBS) * _ENTRY.size


class Logprob(NamedTuple):
    """A token and its natural log-probability."""

    token_id: int
    logprob: float


def pack_logprobs(entries: Iterable[Logprob]) -> bytes:
    """The entries in their order."""
    return b"".join(_ENTRY.pack(*entry) for entry in entries)


def unpack_logprobs(packed: bytes) -> list[Logprob]:
    """The entries of :func:`pack_logprobs`.

    Raises:
        struct.error: it is not made of whole entries.
    """
    return [Logprob(*values) for values in _ENTRY.iter_unpack(packed)]


def is_packed(packed: bytes) -> bool:
    """Whether it is made of whole entries, and of no more than there may be."""
    return len(packed) % _ENTRY.size == 0 and len(packed) <= MAX_LOGPROBS_BYTES
