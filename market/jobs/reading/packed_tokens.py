"""Tokens as bytes, for readers that make something else of them than the shared bytes of events."""

from collections.abc import Iterator

import msgpack

from market.jobs.live_session import TokenEntry


def pack(request_id: str, entry: TokenEntry) -> bytes:
    """A token, such that many, one after the other, can be told apart."""
    packed: bytes = msgpack.packb((entry.entry_id, entry.token_id, entry.text, entry.logprobs))
    return packed


def unpack(packed: bytes) -> Iterator[TokenEntry]:
    """The tokens of what :func:`pack` made of each, one after the other."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(packed)
    return (TokenEntry(*fields) for fields in unpacker)
