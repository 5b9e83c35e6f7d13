"""Frames in pieces, and in bundles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import relay
from mesh.errors import WireError
from mesh.relay import (
    Assembler,
    Chunk,
    Frame,
    KeepAliveAck,
    OutgoingMessage,
    Push,
)


def test_a_body_may_be_empty() -> None:
    assert relay.unbundle(relay.bundle([])) == []


@given(st.integers(0, 3 * relay.CHUNK_BYTES))
def test_pieces_make_the_frame_again(size: int) -> None:
    frame = Push(1, [OutgoingMessage("node", b"", bytes(size))])
    assembler = Assembler()
    found: list[Frame | None] = []
    for message in relay.chunks(relay.encode(frame)):
        assert len(message) <= relay.MAX_MESSAGE_BYTES
        found += [assembler.add(message), assembler.add(relay.encode(KeepAliveAck(1)))]
    assert [each for each in found if not isinstance(each, KeepAliveAck)][-1] == frame
    assert sum(isinstance(each, Push) for each in found) == 1


def test_a_frame_does_not_grow_by_crumbs() -> None:
    for data in (b"", b"x", bytes(relay.CHUNK_BYTES - 1)):
        with pytest.raises(WireError, match="last piece"):
            Assembler().add(relay.encode(Chunk(1, data)))


def test_pieces_that_never_end_are_refused() -> None:
    assembler = Assembler()
    piece = relay.encode(Chunk(1, bytes(relay.CHUNK_BYTES)))
    with pytest.raises(WireError):
        for _ in range(relay.MAX_FRAME_BYTES // relay.CHUNK_BYTES + 1):
            assembler.add(piece)
    with pytest.raises(WireError):
        Assembler().add(relay.encode(Chunk(0, relay.encode(Chunk(0, b"")))))


def test_messages_go_into_as_few_frames_as_they_may() -> None:
    large = OutgoingMessage("node", b"", bytes(relay.MAX_FRAME_BYTES // 3))
    assert [len(batch) for batch in relay.batches([large] * 5)] == [2, 2, 1]
    assert relay.batches([]) == []
    assert len(relay.batches([OutgoingMessage("", b"h", b"")] * (relay.MAX_ITEMS + 1))) == 2
    with pytest.raises(WireError):
        relay.batches([OutgoingMessage("", b"", bytes(relay.MAX_FRAME_BYTES))])
    for batch in relay.batches([large] * 5):
        assert len(relay.encode(Push(1, batch))) <= relay.MAX_FRAME_BYTES
