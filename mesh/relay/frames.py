"""What a node and the relay say to each other, over a WebSocket or in the bodies of long polls.

A frame is one msgpack array: its kind's number, then its fields. The messages in it stay as
:mod:`mesh.wire` encodes them, so that the relay hands hidden states on without reading them.

Delivery contract. *Down*: the node reads its inbox by cursor and names, in each pulse, up to where
it has got; nothing is trimmed before that, so a cut loses nothing. *Up*: pushes are numbered within
a session (one process of a node). The relay remembers in Redis the last one that it has forwarded,
and says so in :class:`Welcome`; the node sends again only what came after. Only if the relay dies
between forwarding and remembering does a push arrive twice, which positions make harmless.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, get_type_hints

import msgpack

from mesh.errors import WireError

VERSION = 1

PATH = "/api/relay"
EXCHANGE_PATH = "/api/relay/exchange"

MAX_FRAME_BYTES = 2**25
"""A prefill chunk of 512 positions at hidden size 16,384 in 16 bits, and as much again."""

CHUNK_BYTES = 2**17
"""Longer frames travel in pieces on a WebSocket, between which pulses and their answers get
through, and each of which shows that the other side lives."""

MAX_MESSAGE_BYTES = CHUNK_BYTES + 64
"""Of one WebSocket message: a piece and its header."""

WINDOW_BYTES = 2**26
"""What a node has been sent and has not taken in yet; then the relay waits. Its connection is
always read, so that pulses and answers never wait behind work."""

MAX_ITEMS = 1024
"""Messages of one frame, and frames of one body."""

MAX_TEXT = 128
"""Characters of an id, a cursor, a code."""

MAX_NUMBER = 2**53

PULSE_INTERVAL = 0.25
"""Seconds between two pulses of a node: less often than beside Redis, since each crosses the
internet."""

POLL_WAIT = 1.0
"""Seconds that a long poll waits for work at most."""

FAREWELL = 1000
"""WebSocket close code, registered: the node has done all it had to do."""

ABANDONED = 1001
"""WebSocket close code, registered: the node comes back, here or elsewhere."""

DISPLACED = 4001
"""WebSocket close code: the node has connected again, elsewhere. It should not come back at
once."""

BROKEN = 4002
"""WebSocket close code: a frame breaks the protocol."""

TRY_AGAIN = 1013
"""WebSocket close code, registered: the relay cannot serve now."""

_CURSOR = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)


class Sent(NamedTuple):
    """A message on its way up. ``to``: the node whose inbox it is for; empty for tokens and events,
    whose place follows from the message. ``header`` and ``tensor`` as in :mod:`mesh.wire`."""

    to: str
    header: bytes
    tensor: bytes


class Entry(NamedTuple):
    """A message on its way down."""

    header: bytes
    tensor: bytes


class Refusal(NamedTuple):
    """What the relay did not forward, and why; ``request_id`` is empty if it could not be read."""

    request_id: str
    epoch: int
    code: str


@dataclass(frozen=True, slots=True)
class Hello:
    """Node: first frame. ``session`` is a random name for the process; ``after`` the cursor to read
    on from, or empty for what comes from now on."""

    version: int
    session: str
    after: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """Relay: this connection's name, the last push of the session that was forwarded (0: none),
    and the cursor that the inbox is read from."""

    connection: str
    number: int
    after: str


@dataclass(frozen=True, slots=True)
class Push:
    """Node: results, to be forwarded together. Numbers grow by one, from 1."""

    number: int
    sent: list[Sent]


@dataclass(frozen=True, slots=True)
class Accepted:
    """Relay: the push is through, but for what was refused."""

    number: int
    refused: list[Refusal]


@dataclass(frozen=True, slots=True)
class Pulse:
    """Node: its process runs, has KV room for ``room`` positions, and has read its inbox up to
    ``after``."""

    number: int
    room: int
    after: str


@dataclass(frozen=True, slots=True)
class Beat:
    """Relay: the pulse of that number is known to all. The time between the two is what a message
    takes to the relay and back."""

    number: int


@dataclass(frozen=True, slots=True)
class Inbox:
    """Relay: what came for the node; go on after ``after``."""

    after: str
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Poll:
    """Node, over HTTP: first frame of each body but the one that says hello. Waits up to ``wait``
    milliseconds for what comes after the cursor; with 0 it does not read the inbox."""

    connection: str
    session: str
    after: str
    wait: int


@dataclass(frozen=True, slots=True)
class Displaced:
    """Relay, over HTTP: what :data:`DISPLACED` is on a WebSocket."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Either, on a WebSocket: a piece of a frame, of which ``rest`` bytes are still to come."""

    rest: int
    data: bytes


Frame = Hello | Welcome | Push | Accepted | Pulse | Beat | Inbox | Poll | Displaced | Chunk

# A kind's place is its number: add at the end.
_KINDS: tuple[type[Any], ...] = (
    Hello,
    Welcome,
    Push,
    Accepted,
    Pulse,
    Beat,
    Inbox,
    Poll,
    Displaced,
    Chunk,
)
_NUMBER_OF = {kind: number for number, kind in enumerate(_KINDS)}
_ITEMS: dict[Any, tuple[type[Any], list[type]]] = {
    list[Sent]: (Sent, [str, bytes, bytes]),
    list[Entry]: (Entry, [bytes, bytes]),
    list[Refusal]: (Refusal, [str, int, str]),
}
_FIELDS = {
    kind: [(field.name, get_type_hints(kind)[field.name]) for field in fields(kind)]
    for kind in _KINDS
}


def encode(frame: Frame) -> bytes:
    """The frame's bytes."""
    kind = type(frame)
    values = [_NUMBER_OF[kind], *(getattr(frame, name) for name, _ in _FIELDS[kind])]
    packed: bytes = msgpack.packb(values)
    return packed


def decode(data: bytes | bytearray) -> Frame:
    """The frame of these bytes. Sizes and counts are checked before anything is allocated.

    Raises:
        WireError: too large, not a frame, or a field of the wrong type or size.
    """
    number, *values = _unpack(data) or [None]
    if type(number) is not int or not 0 <= number < len(_KINDS):
        raise WireError("Unknown kind of frame.")
    kind = _KINDS[number]
    declared = _FIELDS[kind]
    if len(values) != len(declared):
        raise WireError(f"{kind.__name__} has {len(declared)} fields, not {len(values)}.")
    checked = [
        _checked(value, hint, f"{kind.__name__}.{name}")
        for value, (name, hint) in zip(values, declared, strict=True)
    ]
    frame: Frame = kind(*checked)
    return frame


def chunks(data: bytes) -> Iterator[bytes]:
    """An encoded frame as WebSocket messages."""
    if len(data) <= CHUNK_BYTES:
        yield data
        return
    for end in range(CHUNK_BYTES, len(data) + CHUNK_BYTES, CHUNK_BYTES):
        yield encode(Chunk(max(0, len(data) - end), data[end - CHUNK_BYTES : end]))


class Assembler:
    """WebSocket messages back to frames. Other frames may come between the pieces of one."""

    def __init__(self) -> None:
        self._pieces = bytearray()

    def add(self, message: bytes) -> Frame | None:
        """The frame that this message is, or completes; none if there is more to come.

        Raises:
            WireError: not a frame, or one that grows too large, or by less than a whole piece.
        """
        frame = decode(message)
        if not isinstance(frame, Chunk):
            return frame
        if frame.rest and len(frame.data) < CHUNK_BYTES:
            raise WireError("Only the last piece of a frame may be short.")
        if len(self._pieces) + len(frame.data) + frame.rest > MAX_FRAME_BYTES:
            raise WireError(f"A frame has {MAX_FRAME_BYTES} bytes at most.")
        self._pieces += frame.data
        if frame.rest:
            return None
        whole, self._pieces = self._pieces, bytearray()
        frame = decode(whole)
        if isinstance(frame, Chunk):
            raise WireError("A piece of a frame is not a frame.")
        return frame


def bundle(frames: Iterable[bytes]) -> bytes:
    """Encoded frames as one body."""
    packed: bytes = msgpack.packb(list(frames))
    return packed


def unbundle(body: bytes | bytearray) -> list[bytes]:
    """The encoded frames of a body.

    Raises:
        WireError: too large, or not a bundle.
    """
    frames = _unpack(body)
    if not all(type(frame) is bytes for frame in frames):
        raise WireError("A body is an array of frames.")
    return frames


def place(cursor: str) -> tuple[int, int]:
    """Cursors in their order."""
    milliseconds, _, sequence = cursor.partition("-")
    return int(milliseconds), int(sequence)


def is_cursor(text: str) -> bool:
    """Whether this names a place in an inbox."""
    return _CURSOR.fullmatch(text) is not None


def batches(sent: Sequence[Sent]) -> list[list[Sent]]:
    """The messages in their order, in as many lists as there have to be frames.

    Raises:
        WireError: one of them alone is too large for a frame.
    """
    lists: list[list[Sent]] = []
    room = 0
    for message in sent:
        size = len(message.header) + len(message.tensor) + 2 * MAX_TEXT
        if size > MAX_FRAME_BYTES - MAX_TEXT:
            raise WireError(f"A message of {size} bytes is too large for the relay.")
        if not lists or size > room or len(lists[-1]) == MAX_ITEMS:
            lists.append([])
            room = MAX_FRAME_BYTES - MAX_TEXT
        lists[-1].append(message)
        room -= size
    return lists


def _unpack(data: bytes | bytearray) -> list[Any]:
    """An array of no more, and no longer, things than a frame may have."""
    if len(data) > MAX_FRAME_BYTES:
        raise WireError(f"{len(data)} bytes; a frame has {MAX_FRAME_BYTES} at most.")
    try:
        # Not only the bytes: an array's length is a promise, for which room is made at once.
        values = msgpack.unpackb(
            data, max_array_len=MAX_ITEMS, max_map_len=0, max_ext_len=0, max_str_len=MAX_TEXT
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError("Not a msgpack array.") from error
    if not isinstance(values, list):
        raise WireError("Not a msgpack array.")
    return values


def _checked(value: Any, hint: Any, where: str) -> Any:
    if hint in _ITEMS:
        if not isinstance(value, list):
            raise WireError(f"{where} is not an array.")
        kind, types = _ITEMS[hint]
        for item in value:
            if not isinstance(item, list) or [type(part) for part in item] != types:
                raise WireError(f"{where} has an item of the wrong type.")
        return [kind(*item) for item in value]
    if type(value) is not hint:
        raise WireError(f"{where} has the wrong type.")
    if hint is int and not 0 <= value < MAX_NUMBER:
        raise WireError(f"{where} is out of range.")
    if where.endswith(".after") and value and not is_cursor(value):
        raise WireError(f"{where} is not a cursor.")
    return value
