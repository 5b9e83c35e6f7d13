"""Bytes to messages and back, checked before anything is allocated."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgpack

from mesh.errors import WireError
from mesh.wire.limits import MAX_HEADER_BYTES, MAX_STEPS, MAX_TENSOR_BYTES
from mesh.wire.messages import (
    DTYPES,
    INT8_BLOCK,
    Cancel,
    Close,
    Ended,
    GenerationRefused,
    Message,
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
)

_NUMBERS = (float, int)

_LISTS: dict[Any, type] = {list[int]: int, list[bytes]: bytes, list[str]: str}

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

HEADER = b"h"


TENSOR = b"t"


SENDER = b"s"
"""Field of a generation's event: the node that says it, or :data:`PLATFORM`. Written by whoever
knows the node, which is never asked for it."""


PLATFORM = ""
"""In the place of a node: the gateway or the relay says it, of what it has seen itself."""


# A kind's index is its code: add at the end.
_KINDS: tuple[type[Any], ...] = (
    Open,
    OpenEdge,
    PrefixCached,
    Close,
    StopEpoch,
    Ping,
    Steps,
    Token,
    Ended,
    GenerationRefused,
    Pong,
    Cancel,
    PrefixReused,
)


_PARTS = (StageAssignment, Resume, Prompt, SamplingParams)


_CODE_OF = {kind: code for code, kind in enumerate(_KINDS)}


_FIELDS = {
    kind: [(field.name, get_type_hints(kind)[field.name]) for field in fields(kind)]
    for kind in (*_KINDS, *_PARTS)
}


_STEPS_CODE = _CODE_OF[Steps]


_STEP_TYPES = [get_type_hints(Step)[name] for name in Step._fields]


def tensor_bytes(dtype: str, rows: int, width: int) -> int:
    """Size of ``[rows, width]`` hidden states on the wire."""
    scales = 2 * rows * -(-width // INT8_BLOCK) if dtype == "int8" else 0
    return rows * width * _ITEM_BYTES[dtype] + scales


def encode(message: Message) -> dict[bytes, bytes | memoryview]:
    """A message as the fields of a stream entry."""
    if isinstance(message, Steps):
        header = (_STEPS_CODE, message.steps, message.dtype, message.width)
        return {HEADER: msgpack.packb(header), TENSOR: message.data}
    return {HEADER: msgpack.packb((_CODE_OF[type(message)], *astuple(message)))}


def decode(entry: Mapping[bytes, bytes], *, max_items: int = MAX_HEADER_BYTES) -> Message:
    """The message that a stream entry holds.

    Args:
        entry: Its fields.
        max_items: Of any array in the header: msgpack allocates for as many as it claims. None has
            more items than the header has bytes.

    Raises:
        WireError: unknown kind, wrong field, dtype or size.
    """
    header = entry.get(HEADER, b"")
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"Header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are allowed.")
    try:
        most = min(max_items, len(header))
        code, *values = msgpack.unpackb(
            header, max_array_len=most, max_map_len=most, strict_map_key=False
        )
    except (ValueError, TypeError) as error:
        raise WireError("The header is not a msgpack array.") from error
    if not isinstance(code, int) or not 0 <= code < len(_KINDS):
        raise WireError(f"Unknown message kind {code!r}.")
    if code == _STEPS_CODE:
        return _decode_steps(values, entry.get(TENSOR, b""))
    message: Message = _build(_KINDS[code], values)
    return message


def _decode_steps(values: Sequence[Any], data: bytes) -> Steps:
    message: Steps = _build(Steps, [*values, data])
    if message.dtype not in DTYPES:
        raise WireError(f"Unknown dtype {message.dtype!r}; known are {', '.join(DTYPES)}.")
    if message.width < 1 or not message.steps:
        raise WireError("Hidden states need at least one step and one column.")
    if len(message.steps) > MAX_STEPS:
        raise WireError(f"{len(message.steps)} steps; a message has {MAX_STEPS} at most.")
    for step in message.steps:
        if step.position < 0 or step.rows < 1 or not 0 <= step.wanted <= step.rows:
            raise WireError(
                "A step needs a position of at least 0 and at least one row, and cannot want more "
                "rows than it has."
            )
    expected = tensor_bytes(message.dtype, message.rows, message.width)
    if len(data) != expected or expected > MAX_TENSOR_BYTES:
        raise WireError(f"Tensor of {len(data)} bytes where the shape says {expected}.")
    return message


def _step(values: Any) -> Step:
    if not isinstance(values, list) or [type(value) for value in values] != _STEP_TYPES:
        raise WireError("A step has the wrong fields.")
    return Step(*values)


def _build(kind: type[Any], values: Sequence[Any]) -> Any:
    declared = _FIELDS[kind]
    if len(values) != len(declared):
        raise WireError(f"{kind.__name__} has {len(declared)} fields, not {len(values)}.")
    return kind(
        *(
            _checked(value, hint, f"{kind.__name__}.{name}")
            for value, (name, hint) in zip(values, declared, strict=True)
        )
    )


def _checked(value: Any, hint: Any, where: str) -> Any:
    if hint in _PARTS:
        if not isinstance(value, list):
            raise WireError(f"{where} is not an array.")
        return _build(hint, value)
    if hint == list[Step]:
        if not isinstance(value, list):
            raise WireError(f"{where} is not an array.")
        return [_step(item) for item in value]
    if hint in _LISTS:
        ok = isinstance(value, list) and all(type(item) is _LISTS[hint] for item in value)
    elif hint == dict[int, float]:
        ok = isinstance(value, dict) and all(
            type(key) is int and type(item) in _NUMBERS for key, item in value.items()
        )
    elif get_origin(hint) is UnionType:  # of a type and none
        return None if value is None else _checked(value, get_args(hint)[0], where)
    elif hint is float:
        ok = type(value) in _NUMBERS
    elif hint in (int, str, bool):
        ok = type(value) is hint
    else:
        ok = isinstance(value, (bytes, memoryview))
    if not ok:
        raise WireError(f"{where} has the wrong type.")
    return value
