"""Messages survive the wire, and nothing else gets through it."""

import contextlib
import pickle  # noqa: TID251 - to show that it is refused
from collections.abc import Sequence
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
    GenerationRefused,
    Open,
    OpenEdge,
    Ping,
    Pong,
    PrefixCached,
    PrefixReused,
    Prompt,
    Resume,
    SamplingParams,
    StageAssignment,
    Step,
    Steps,
    StopEpoch,
    Token,
    codec,
    limits,
)
from mesh.wire.logprobs import Logprob, pack_logprobs

PLACE = StageAssignment(1, 3, "edge", "previous", "next", 100, 60, 2, 4)

MESSAGES = [
    Open("req", 1, PLACE, Resume(True, False, 7), [b"12345678"]),
    OpenEdge(
        "req",
        1,
        PLACE,
        Resume(False, False, 0),
        [],
        Prompt([1, 2], [3], 5, SamplingParams(0.5, 1.0, 7, ["x"])),
    ),
    OpenEdge(
        "req",
        1,
        PLACE,
        Resume(False, False, 0),
        [],
        Prompt(
            [1, 2],
            [3],
            5,
            SamplingParams(
                0.5, 0.9, 7, [], 40, 0.1, 1.2, 0.5, -0.5, {7: -100.0, 2**31: 1.5}, 3, "{}"
            ),
        ),
    ),
    PrefixCached("req", 1, 2, 64),
    PrefixReused("req", 1, 64),
    StopEpoch("req", 1),
    Close("req", 1),
    Ping("req", 1),
    Pong("req", 1, "node", 7),
    Token("req", 1, 0, 42, "text"),
    Token("req", 1, 0, 42, "text", pack_logprobs([Logprob(42, -0.5), Logprob(7, -1.5)])),
    Ended("req", 1, "stop", 5),
    Ended("req", 1, "stop", 5, 3, 4),
    GenerationRefused("req", 1, "node", "kv_full"),
    Cancel("req", 1),
    Steps([Step("req", 1, 3, 2, 1, False)], "int8", 3, bytes(10)),
    Steps([Step("a", 1, 3, 2, 2, False), Step("b", 2, 0, 1, 0, True)], "float32", 3, bytes(36)),
    Steps([Step("req", 1, 3, 2, 0, True)], "bfloat16", 3, bytes(12)),
]


def entry(message: wire.Message) -> dict[bytes, bytes]:
    return {key: bytes(value) for key, value in wire.encode(message).items()}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: wire.Message) -> None:
    assert wire.decode(entry(message)) == message


def steps_entry(
    *,
    data: bytes = bytes(24),
    dtype: object = "float32",
    width: object = 3,
    more: Sequence[object] = (),
    **changed: object,
) -> dict[bytes, bytes]:
    """One step of two rows, then ``more``."""
    code = msgpack.unpackb(wire.encode(MESSAGES[-1])[wire.HEADER])[0]
    good = dict(zip(Step._fields, ["req", 1, 3, 2, 1, False], strict=True))
    steps = [list((good | changed).values()), *more]
    return {wire.HEADER: msgpack.packb([code, steps, dtype, width]), wire.TENSOR: data}


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
        {"more": [["other", 1, 3, 1, 1, False]]},
        {"more": [["other", 1, 3, 0, 0, False]]},
        {"more": [["other", 1, 3]]},
        {"more": ["other"]},
    ],
    ids=str,
)
def test_a_step_that_is_not_what_it_says_is_refused(changed: dict[str, Any]) -> None:
    assert isinstance(wire.decode(steps_entry()), Steps)
    with pytest.raises(WireError):
        wire.decode(steps_entry(**changed))


@pytest.mark.parametrize("steps", [[], "steps", 7, {}], ids=str)
def test_what_is_no_list_of_steps_is_refused(steps: object) -> None:
    code = msgpack.unpackb(wire.encode(MESSAGES[-1])[wire.HEADER])[0]
    header = msgpack.packb([code, steps, "float32", 3])
    with pytest.raises(WireError):
        wire.decode({wire.HEADER: header, wire.TENSOR: b""})


def test_a_tensor_over_the_cap_is_refused_although_its_size_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec, "MAX_TENSOR_BYTES", 23)
    with pytest.raises(WireError):
        wire.decode(steps_entry())


def test_a_header_over_the_cap_is_not_even_parsed() -> None:
    with pytest.raises(WireError, match="Header of"):
        wire.decode({wire.HEADER: bytes(limits.MAX_HEADER_BYTES + 1)})


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
