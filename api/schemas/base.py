"""The specification's data models (§8), as the API takes and gives them.

Where they differ from its text: amounts are exact (`Decimal` inside, a number for reading and an
exact string beside it in JSON), `vram_gb` may be 0 (CPU nodes), `public_addr` may be a host name
or IPv6, and a session never carries its prompt.
"""

import re
from decimal import Decimal
from ipaddress import IPv6Address
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
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

ChosenId = Annotated[
    str, StringConstraints(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.:-]{{0,{MAX_NODE_ID - 1}}}$")
]
"""What a node or a machine may call itself."""

MachineName = Annotated[
    str, StringConstraints(max_length=MAX_MACHINE_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
]
"""What a provider calls a machine. It stands in a text that his wallet shows him: so it is one
line, in letters that EIP-4361 allows."""

HOST_LABEL = re.compile(r"[A-Za-z0-9-]{1,63}")


def _address(value: str) -> str:
    """``host:port``, the host an IPv4 address, an IPv6 address in brackets, or a name."""
    host, _, port = value.rpartition(":")
    if not (_is_ipv6(host) if host.startswith("[") else _is_host_name(host)):
        raise ValueError("the host is no name or address")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16):
        raise ValueError("the port is not within 1 to 65535")
    return value


def _is_host_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return not host.startswith("-") and all(map(HOST_LABEL.fullmatch, labels))


def _is_ipv6(host: str) -> bool:
    try:
        address = IPv6Address(host[1:-1])
    except ValueError:
        return False
    return host.endswith("]") and address.scope_id is None


Address = Annotated[str, StringConstraints(max_length=255), AfterValidator(_address)]
"""Where a node can be reached. Nothing of ours connects there: providers open no port."""


MAX_FIELDS = 100
"""Far beyond any request. Each unknown field is an error of its own, and a body has room for a
hundred thousand."""


class RequestBody(BaseModel):
    """What strangers send: only fields that we know, and no number that is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "There are too many fields")
        return data


def as_float(amount: Decimal) -> float:
    """An amount for people and charts. Never computed with: the exact string stands beside it."""
    return float(amount)


def amounts_far(**amounts: Decimal) -> dict[str, Any]:
    """Each amount of FAR as the number ``name_far`` and the exact string ``name_far_exact``."""
    numbers = {f"{name}_far": as_float(amount) for name, amount in amounts.items()}
    return numbers | {f"{name}_far_exact": format_exact(amount) for name, amount in amounts.items()}
