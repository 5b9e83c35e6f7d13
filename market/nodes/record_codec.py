"""A node as a Redis hash and back."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from decimal import Decimal
from typing import Any, get_type_hints

from market.nodes.node import LocationSource, Node

_FIELDS = fields(Node)

FIELD_NAMES = [field.name for field in _FIELDS]
"""Fields of the hash, in the order of :class:`Node`."""

_TYPES = get_type_hints(Node)


def to_text(value: Any) -> str:
    """A field's value as the hash has it."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


_READERS: dict[Any, Callable[[bytes], Any]] = {
    str: bytes.decode,
    int: int,
    float: float,
    bool: lambda text: text == b"1",
    float | None: lambda text: float(text) if text else None,
    Decimal | None: lambda text: Decimal(text.decode()) if text else None,
    LocationSource: bytes.decode,
}

_READ = [_READERS[_TYPES[field.name]] for field in _FIELDS]
_DEFAULTS = [field.default for field in _FIELDS]


def from_record(record: Sequence[bytes | None]) -> Node | None:
    """The node of a record's values in the order of :data:`FIELD_NAMES`; none if another version
    wrote the record without a value that has no default."""
    values: list[Any] = [
        default if written is None else read(written)
        for written, read, default in zip(record, _READ, _DEFAULTS, strict=True)
    ]
    return None if MISSING in values else Node(*values)
