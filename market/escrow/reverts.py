"""The escrow's custom errors, decoded by its ABI."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import (
    abi_to_signature,
    filter_abi_by_type,
    get_abi_input_names,
    get_abi_input_types,
)
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3.exceptions import ContractCustomError, Web3Exception

from market.escrow.artifacts import artifact
from market.escrow.errors import SettlementRefused

PREFIX = "InferenceEscrow_"
"""Before the names of the escrow's own errors; all others are OpenZeppelin's."""


def decode_refusal(error: Web3Exception) -> SettlementRefused:
    """The refusal behind an exception that web3 raised for a call of the escrow."""
    if isinstance(error, ContractCustomError) and isinstance(error.data, str):
        data = bytes(HexBytes(error.data))
        found = _errors_by_selector().get(data[:4])
        if found is not None:
            return _refusal(found, data[4:])
    return SettlementRefused(f"The contract refuses the batch: {error}", reason="unknown")


@lru_cache
def _errors_by_selector() -> dict[bytes, Any]:
    """The ABI's errors by the first four bytes of their data."""
    errors = filter_abi_by_type("error", artifact("InferenceEscrow")["abi"])
    return {keccak(text=abi_to_signature(error))[:4]: error for error in errors}


def _refusal(error: Any, data: bytes) -> SettlementRefused:
    name = str(error["name"]).removeprefix(PREFIX)
    try:
        values = decode(get_abi_input_types(error), data)
    except DecodingError:
        values = ()
    names = [str(name) for name in get_abi_input_names(error)]
    named: Mapping[str, Any] = dict(zip(names, values, strict=False))
    arguments = ", ".join(f"{key} {_as_text(value)}" for key, value in named.items())
    return SettlementRefused(
        f"The contract refuses the batch: {name}({arguments}).",
        reason=name,
        user=str(named["user"]).lower() if "user" in named else None,
        left=named.get("left"),
    )


def _as_text(value: Any) -> str:
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)
