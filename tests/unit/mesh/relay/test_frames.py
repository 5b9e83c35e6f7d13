"""Frames survive the way to the relay, and nothing else gets in."""

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.relay.keepalive_ttl import AdaptiveTtl
from api.relay.stream_trimming import StreamTrimmer
from api.relay.throttle import NodeThrottle
from mesh import relay, wire
from mesh.errors import WireError
from mesh.keepalive import (
    MAX_RELAY_KEEPALIVE_TTL,
    MIN_RELAY_KEEPALIVE_TTL,
    RELAY_KEEPALIVE_INTERVAL,
)
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
from mesh.route_record import RouteRecord, epoch_of

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


PROMISES = {
    "an array": b"\xdd\x7f\xff\xff\xff",
    "a map": b"\xdf\x7f\xff\xff\xff",
    "bytes": b"\xc6\x7f\xff\xff\xff",
    "text": b"\xdb\x7f\xff\xff\xff",
    "an extension": b"\xc9\x7f\xff\xff\xff\x01",
    "arrays in arrays": b"\xdc\x04\x00" * 5000,
    "arrays in an array": b"\x92\x02\xdc\x04\x00" * 1000,
}


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_of_size_is_not_believed(name: str) -> None:
    tracemalloc.start()
    try:
        for data in (PROMISES[name], b"\x93\x02\x01" + PROMISES[name]):
            with pytest.raises(WireError):
                relay.decode(data)
            with pytest.raises(WireError):
                wire.decode({wire.HEADER: data}, max_items=256)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_a_body_may_be_empty() -> None:
    assert relay.unbundle(relay.bundle([])) == []


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


def test_cursors_have_an_order() -> None:
    assert relay.cursor_order("9-10") < relay.cursor_order("10-0") < relay.cursor_order("10-1")


def test_a_live_route_survives_and_nothing_else_does() -> None:
    route = RouteRecord(8, 100, ["a", "b", "c"])
    assert RouteRecord.unpack(route.pack()) == route
    for other in (None, b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb(7)):
        assert RouteRecord.unpack(other) is None
    assert (route.edge_node, route.next_node(0), route.next_node(2), route.previous_node(0)) == (
        "a",
        "b",
        "a",
        "c",
    )
    assert route.stage_of("c") == 2
    assert route.stage_of("d") is None
    assert [epoch_of(written) for written in (None, b"sealed", b"7")] == [None, None, 7]


def test_pulses_hold_for_longer_where_they_come_unevenly() -> None:
    even, uneven = AdaptiveTtl(), AdaptiveTtl()
    for number in range(100):
        held = even.heard(number * RELAY_KEEPALIVE_INTERVAL)
        longer = uneven.heard(number * RELAY_KEEPALIVE_INTERVAL + (0.4 if number % 2 else 0.0))
    assert held == MIN_RELAY_KEEPALIVE_TTL
    assert MIN_RELAY_KEEPALIVE_TTL < longer <= MAX_RELAY_KEEPALIVE_TTL
    assert (
        uneven.heard(1000.0) == MAX_RELAY_KEEPALIVE_TTL
    )  # a gap, however long, makes nobody immortal
    for number in range(100):
        longer = uneven.heard(1000.0 + number * RELAY_KEEPALIVE_INTERVAL)
    assert longer == MIN_RELAY_KEEPALIVE_TTL


async def test_pace_lets_a_burst_through() -> None:
    pace = NodeThrottle(messages_per_second=10, bytes_per_second=1e9)
    for _ in range(20):
        await pace.take("node", 1, 0)
    assert pace._due.keys() == {"node"}


def test_a_key_is_looked_after_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    upkeep = StreamTrimmer(look_bytes=100)
    assert upkeep.due("inbox", 60)
    assert [upkeep.due("inbox", 60) for _ in range(4)] == [False, True, False, True]
    assert upkeep.due("link")
    assert not upkeep.due("link")
    upkeep.forget()
    assert upkeep.due("link")
    monkeypatch.setattr("api.relay.stream_trimming.CHECK_SECONDS", 0.0)
    assert upkeep.due("link")
