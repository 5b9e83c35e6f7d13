"""Frames survive the way to the relay, and nothing else gets in."""

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import relay, wire
from mesh.errors import WireError
from mesh.relay import (
    Assembler,
    Chunk,
    Frame,
    Hello,
    InboxDelivery,
    InboxEntry,
    KeepAlive,
    KeepAliveAck,
    OutgoingMessage,
    Poll,
    Push,
    PushAck,
    Refusal,
    Superseded,
    Welcome,
)

FRAMES: list[Frame] = [
    Hello(1, "session", ""),
    Welcome("connection", 7, "12-0"),
    Push(1, [OutgoingMessage("node", b"header", b"tensor"), OutgoingMessage("", b"", b"")]),
    PushAck(1, [Refusal("req", 2, "epoch_over")]),
    KeepAlive(3, 640, "1-1"),
    KeepAliveAck(3),
    InboxDelivery("5-0", [InboxEntry(b"header", b"")]),
    Poll("connection", "session", "5-0", 1000),
    Superseded(),
    Chunk(0, b"x"),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_survives(frame: Frame) -> None:
    assert relay.decode(relay.encode(frame)) == frame
    assert relay.unbundle(relay.bundle([relay.encode(frame)])) == [relay.encode(frame)]


@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    for read in (relay.decode, relay.unbundle, Assembler().add):
        try:
            read(data)
        except WireError:
            continue


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.integers(-1, 12), st.lists(JUNK, max_size=5))
def test_other_arrays_are_refused_or_are_frames(number: int, values: list[object]) -> None:
    data = msgpack.packb([number, *values])
    try:
        frame = relay.decode(data)
    except WireError:
        return
    assert relay.decode(relay.encode(frame)) == frame


@given(st.data())
def test_a_damaged_frame_is_refused_or_another(data: st.DataObject) -> None:
    whole = bytearray(relay.encode(data.draw(st.sampled_from(FRAMES))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    try:
        relay.decode(bytes(whole))
    except WireError:
        return


CLAIMED_SIZES = {
    "an array": b"\xdd\x7f\xff\xff\xff",
    "a map": b"\xdf\x7f\xff\xff\xff",
    "bytes": b"\xc6\x7f\xff\xff\xff",
    "text": b"\xdb\x7f\xff\xff\xff",
    "an extension": b"\xc9\x7f\xff\xff\xff\x01",
    "arrays in arrays": b"\xdc\x04\x00" * 5000,
    "arrays in an array": b"\x92\x02\xdc\x04\x00" * 1000,
}


@pytest.mark.parametrize("name", CLAIMED_SIZES)
def test_no_memory_is_allocated_for_a_claimed_size(name: str) -> None:
    tracemalloc.start()
    try:
        for data in (CLAIMED_SIZES[name], b"\x93\x02\x01" + CLAIMED_SIZES[name]):
            with pytest.raises(WireError):
                relay.decode(data)
            with pytest.raises(WireError):
                wire.decode({wire.HEADER: data}, max_items=256)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_sizes_are_capped() -> None:
    with pytest.raises(WireError, match="at most"):
        relay.decode(bytes(relay.MAX_FRAME_BYTES + 1))
    many = relay.encode(InboxDelivery("1-0", [InboxEntry(b"", b"")] * (relay.MAX_ITEMS + 1)))
    for wrong in (
        many,
        relay.encode(Hello(1, "x" * 200, "")),
        relay.encode(Hello(1, "session", "1")),
        relay.encode(Hello(1, "session", "1-0\n")),
        relay.encode(KeepAliveAck(2**53)),
    ):
        with pytest.raises(WireError):
            relay.decode(wrong)


def test_cursors_have_an_order() -> None:
    assert relay.cursor_order("9-10") < relay.cursor_order("10-0") < relay.cursor_order("10-1")
