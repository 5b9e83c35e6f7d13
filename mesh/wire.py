"""What nodes, workers and readers say to each other: a msgpack header, and raw tensor bytes.

Delivery contract: a message may arrive twice or never. A :class:`Step` carries its position, and
its receiver truncates its KV cache to that position first, so a repeated step is harmless; a lost
one shows as a stall, which the supervisor answers with a new epoch.

Everything is checked before anything is allocated: kind, field types, dtype, and that the bytes
are exactly as many as the shape says. Nothing here can execute what it is sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, get_type_hints

import msgpack

from mesh.errors import WireError

MAX_TENSOR_BYTES = 64 * 2**20
"""A prefill chunk of 1,024 positions at hidden size 16,384 in float32."""

MAX_HEADER_BYTES = 4 * 2**20
"""An open message carries the whole prompt, up to some hundred thousand token ids."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

HEADER = b"h"
TENSOR = b"t"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the edge chooses the next token. ``temperature`` 0 means greedy."""

    temperature: float
    top_p: float
    seed: int
    stop: list[str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What only the edge is told: token ids, and how to continue them.

    ``generated`` holds the tokens that readers have already (after a re-route); the edge
    prefills them again and continues after them.
    """

    token_ids: list[int]
    generated: list[int]
    max_tokens: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Open:
    """Supervisor to node: reserve KV room and expect steps of this generation.

    ``capacity`` is in positions, ``expires_in`` in seconds. ``next_node`` is the next hop, from
    the last stage the edge. A repeated or older epoch is ignored.
    """

    request_id: str
    epoch: int
    stage: int
    stages: int
    capacity: int
    expires_in: int
    next_node: str


@dataclass(frozen=True, slots=True)
class OpenEdge:
    """Supervisor to edge: as :class:`Open`, with the prompt. The edge starts at once."""

    request_id: str
    epoch: int
    stage: int
    stages: int
    capacity: int
    expires_in: int
    next_node: str
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Close:
    """Supervisor to node: the generation ended; free its KV room."""

    request_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Supervisor to node: are you alive? Answered by :class:`Pong`."""

    request_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Step:
    """Node to node: hidden states of consecutive positions, shape ``[rows, width]``.

    ``position`` is that of the first row. ``sample`` marks the chunk after which the edge
    samples: the last stage then returns its last row, and otherwise nothing.
    """

    request_id: str
    epoch: int
    position: int
    sample: bool
    dtype: str
    rows: int
    width: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Token:
    """Edge to readers: token ``index`` (from 0). ``text`` may be empty (half a character)."""

    request_id: str
    epoch: int
    index: int
    token_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Edge to supervisor: ``count`` tokens were written; ``reason`` is ``stop`` or ``length``."""

    request_id: str
    epoch: int
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Node to supervisor: this generation cannot go on here (``kv_full``, ``gap``, ...)."""

    request_id: str
    epoch: int
    node_id: str
    code: str


@dataclass(frozen=True, slots=True)
class Pong:
    """Node to supervisor: alive."""

    request_id: str
    epoch: int
    node_id: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Gateway to supervisor: the user asked for the end; Postgres has the request."""

    request_id: str
    epoch: int


Message = Open | OpenEdge | Close | Ping | Step | Token | Ended | Refused | Pong | Cancel

_KINDS: tuple[type[Any], ...] = (
    Open,
    OpenEdge,
    Close,
    Ping,
    Step,
    Token,
    Ended,
    Refused,
    Pong,
    Cancel,
)
_CODE_OF = {kind: code for code, kind in enumerate(_KINDS)}
_FIELDS = {
    kind: [(field.name, get_type_hints(kind)[field.name]) for field in fields(kind)]
    for kind in (*_KINDS, Prompt, Sampling)
}
_STEP_CODE = _CODE_OF[Step]


def encode(message: Message) -> dict[bytes, bytes | memoryview]:
    """A message as the fields of a stream entry."""
    if isinstance(message, Step):
        header = (
            _STEP_CODE,
            message.request_id,
            message.epoch,
            message.position,
            message.sample,
            message.dtype,
            message.rows,
            message.width,
        )
        return {HEADER: msgpack.packb(header), TENSOR: message.data}
    return {HEADER: msgpack.packb((_CODE_OF[type(message)], *astuple(message)))}


def decode(entry: Mapping[bytes, bytes]) -> Message:
    """The message that a stream entry holds.

    Raises:
        WireError: unknown kind, wrong field, dtype or size.
    """
    header = entry.get(HEADER, b"")
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"Header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are allowed.")
    try:
        code, *values = msgpack.unpackb(header)
    except (ValueError, TypeError) as error:
        raise WireError("The header is not a msgpack array.") from error
    if not isinstance(code, int) or not 0 <= code < len(_KINDS):
        raise WireError(f"Unknown message kind {code!r}.")
    if code == _STEP_CODE:
        return _decode_step(values, entry.get(TENSOR, b""))
    message: Message = _build(_KINDS[code], values)
    return message


def _decode_step(values: Sequence[Any], data: bytes) -> Step:
    step: Step = _build(Step, [*values, data])
    if step.dtype not in ITEM_BYTES:
        raise WireError(f"Unknown dtype {step.dtype!r}; known are {', '.join(ITEM_BYTES)}.")
    if step.position < 0 or step.rows < 1 or step.width < 1:
        raise WireError("A step needs a position of at least 0 and at least one row and column.")
    expected = step.rows * step.width * ITEM_BYTES[step.dtype]
    if len(data) != expected or expected > MAX_TENSOR_BYTES:
        raise WireError(f"Tensor of {len(data)} bytes where the shape says {expected}.")
    return step


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
    if hint in (Prompt, Sampling):
        if not isinstance(value, list):
            raise WireError(f"{where} is not an array.")
        return _build(hint, value)
    if hint == list[int]:
        ok = isinstance(value, list) and all(type(item) is int for item in value)
    elif hint == list[str]:
        ok = isinstance(value, list) and all(type(item) is str for item in value)
    elif hint is float:
        ok = type(value) in (float, int)
    elif hint in (int, str, bool):
        ok = type(value) is hint
    else:
        ok = isinstance(value, (bytes, memoryview))
    if not ok:
        raise WireError(f"{where} has the wrong type.")
    return value
