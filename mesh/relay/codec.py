"""Frames to bytes and back."""

import re
from dataclasses import fields
from typing import Any, get_type_hints

import msgpack

from mesh.errors import WireError
from mesh.relay.frames import (
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    MAX_TEXT,
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

MAX_NUMBER = 2**53


_CURSOR = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)


# A kind's index is its number: add at the end.
_KINDS: tuple[type[Any], ...] = (
    Hello,
    Welcome,
    Push,
    PushAck,
    KeepAlive,
    KeepAliveAck,
    InboxDelivery,
    Poll,
    Superseded,
    Chunk,
)


_NUMBER_OF = {kind: number for number, kind in enumerate(_KINDS)}


_ITEMS: dict[Any, tuple[type[Any], list[type]]] = {
    list[OutgoingMessage]: (OutgoingMessage, [str, bytes, bytes]),
    list[InboxEntry]: (InboxEntry, [bytes, bytes]),
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
    number, *values = unpack(data) or [None]
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


def cursor_order(cursor: str) -> tuple[int, int]:
    """A key by which cursors sort in the order of their entries."""
    milliseconds, _, sequence = cursor.partition("-")
    return int(milliseconds), int(sequence)


def is_cursor(text: str) -> bool:
    """Whether a text is a cursor: the ID of an inbox's entry."""
    return _CURSOR.fullmatch(text) is not None


def unpack(data: bytes | bytearray) -> list[Any]:
    """The array of these bytes, whose items are no more and no longer than a frame may have.

    Raises:
        WireError: too large, or not such an array.
    """
    if len(data) > MAX_FRAME_BYTES:
        raise WireError(f"{len(data)} bytes; a frame has {MAX_FRAME_BYTES} at most.")
    try:
        # Not only the bytes: msgpack allocates for the length that an array claims.
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
