"""The specification's data models (§8), as the API takes and gives them.

Where they differ from its text: amounts are exact (`Decimal` inside, a number for reading and an
exact string beside it in JSON), `vram_gb` may be 0 (CPU nodes), `public_addr` may be a host name
or IPv6, and a session never carries its prompt.
"""

import datetime as dt
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Strict,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from market.money import format_exact
from mesh.node_api import MAX_LABEL, MAX_MACHINE_NAME
from mesh.wire.limits import MAX_MODEL_ID, MAX_NODE_ID

WalletAddress = Annotated[str, StringConstraints(pattern=r"^0x[a-fA-F0-9]{40}$", to_lower=True)]
"""An EVM address; kept in lower case, so that equal wallets compare equal."""

ModelId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_MODEL_ID)]

PathId = Annotated[str, StringConstraints(max_length=255, pattern=r"^[\x21-\x7e]+$")]
"""What a path names: Postgres, for one, has no NUL."""

Label = Annotated[str, StringConstraints(max_length=MAX_LABEL, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line of text for people, without control characters (Postgres, for one, has no NUL)."""

IdempotencyKey = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[!-~]([ -~]*[!-~])?$")
]
"""Printable ASCII, as a header's value comes: without spaces around it."""

ChosenId = Annotated[
    str, StringConstraints(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.:-]{{0,{MAX_NODE_ID - 1}}}$")
]
"""What a node or a machine may call itself."""

MachineName = Annotated[
    str, StringConstraints(max_length=MAX_MACHINE_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
]
"""What a provider calls a machine. It stands in a text that his wallet shows him: so it is one
line, in letters that EIP-4361 allows."""

_HOST = r"[A-Za-z0-9][A-Za-z0-9-]{0,62}(\.[A-Za-z0-9-]{1,63})*\.?|\[[0-9A-Fa-f:.]{2,45}\]"
_PORT = r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6([0-4][0-9]{3}|5([0-4][0-9]{2}|5([0-2][0-9]|3[0-5])))"

Address = Annotated[str, StringConstraints(max_length=255, pattern=rf"^({_HOST}):({_PORT})$")]
"""``host:port``, the host an IPv4 address, an IPv6 address in brackets, or a name. Nothing of ours
connects there: providers open no port."""

Price = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}(\.[0-9]{1,18})?$")]
"""FAR as decimal text, exact to a base unit."""


def _is_date_text(value: Any) -> Any:
    if not isinstance(value, dt.datetime) and not (isinstance(value, str) and DATE.match(value)):
        raise ValueError("a date, or a date and a time, as RFC 3339 has them")
    return value


DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ]|$)")

Timestamp = Annotated[dt.datetime, Strict(False), BeforeValidator(_is_date_text)]
"""A time of RFC 3339, or a date. Pydantic alone takes numbers for times, too."""


MAX_FIELDS = 100
"""Far beyond any request. Each unknown field is an error of its own, and a body has room for a
hundred thousand."""


def whole(value: Any) -> Any:
    """8.0 as 8: JSON Schema counts both as integers."""
    if isinstance(value, list):
        return [whole(each) if isinstance(each, float) else each for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class RequestBody(BaseModel):
    """What strangers send: only fields that we know, of the types that the schema names, and no
    number that is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "There are too many fields")
        if isinstance(data, dict):
            return {name: whole(value) for name, value in data.items()}
        return data


def as_float(amount: Decimal) -> float:
    """An amount for people and charts. Never computed with: the exact string stands beside it."""
    return float(amount)


def amounts_far(**amounts: Decimal) -> dict[str, Any]:
    """Each amount of FAR as the number ``name_far`` and the exact string ``name_far_exact``."""
    numbers = {f"{name}_far": as_float(amount) for name, amount in amounts.items()}
    return numbers | {f"{name}_far_exact": format_exact(amount) for name, amount in amounts.items()}
