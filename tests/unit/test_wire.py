"""Messages survive the wire, and nothing else gets through it."""

import contextlib
import pickle  # noqa: TID251 - to show that it is refused
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import wire
from mesh.errors import WireError
from mesh.wire import (
    Cancel,
    Close,
    Ended,
    Halt,
    Open,
    OpenEdge,
    Ping,
    Place,
    Pong,
    Prompt,
    Ready,
    Refused,
    Resume,
    Sampling,
    Step,
    Token,
)

PLACE = Place(1, 3, "edge", "previous", "next", 100, 60)

MESSAGES = [
    Open("req", 1, PLACE, Resume(True, False, 7), [b"12345678"]),
    OpenEdge(
        "req",
        1,
        PLACE,
        Resume(False, False, 0),
        [],
        Prompt([1, 2], [3], 5, Sampling(0.5, 1.0, 7, ["x"])),
    ),
    Ready("req", 1, 2, 64),
    Halt("req", 1),
    Close("req", 1),
    Ping("req", 1),
    Pong("req", 1, "node"),
    Token("req", 1, 0, 42, "text"),
    Ended("req", 1, "stop", 5),
    Refused("req", 1, "node", "kv_full"),
    Cancel("req", 1),
    Step("req", 1, 3, 1, False, "int8", 2, 3, bytes(10)),
    Step("req", 1, 3, 2, False, "float32", 2, 3, bytes(24)),
    Step("req", 1, 3, 0, True, "bfloat16", 2, 3, bytes(12)),
]


def entry(message: wire.Message) -> dict[bytes, bytes]:
    return {key: bytes(value) for key, value in wire.encode(message).items()}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: wire.Message) -> None:
    assert wire.decode(entry(message)) == message


def step_entry(*, data: bytes = bytes(24), **changed: Any) -> dict[bytes, bytes]:
    names = ["request_id", "epoch", "position", "wanted", "replay", "dtype", "rows", "width"]
    code = msgpack.unpackb(wire.encode(MESSAGES[-1])[wire.HEADER])[0]
    good = dict(zip(names, ["req", 1, 3, 1, False, "float32", 2, 3], strict=True))
    return {wire.HEADER: msgpack.packb([code, *(good | changed).values()]), wire.TENSOR: data}


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": -2},
        {"rows": 0},
        {"rows": 2**40},
        {"width": 4},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"position": -1},
        {"position": 1.5},
        {"epoch": "1"},
        {"replay": 1},
        {"wanted": 3},
        {"wanted": -1},
        {"data": bytes(23)},
        {"data": b""},
    ],
    ids=str,
)
def test_a_step_that_is_not_what_it_says_is_refused(changed: dict[str, Any]) -> None:
    assert isinstance(wire.decode(step_entry()), Step)
    with pytest.raises(WireError):
        wire.decode(step_entry(**changed))


def test_a_tensor_over_the_cap_is_refused_although_its_size_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MAX_TENSOR_BYTES", 23)
    with pytest.raises(WireError):
        wire.decode(step_entry())


def test_a_header_over_the_cap_is_not_even_parsed() -> None:
    with pytest.raises(WireError, match="Header of"):
        wire.decode({wire.HEADER: bytes(wire.MAX_HEADER_BYTES + 1)})


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({"a": 1}),
        msgpack.packb([99, "req", 1]),
        msgpack.packb(["0", "req", 1]),
        msgpack.packb([2, "req"]),
        msgpack.packb([2, "req", 1, 1]),
        pickle.dumps([2, "req", 1]),
    ],
)
def test_a_header_that_is_none_of_ours_is_refused(header: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode({wire.HEADER: header})


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_never_crash(header: bytes) -> None:
    with contextlib.suppress(WireError):
        wire.decode({wire.HEADER: header, wire.TENSOR: b""})
