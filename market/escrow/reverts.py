"""What a refusal of the escrow means: its custom errors, decoded by the ABI."""

from collections.abc import Mapping, Sequence
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

from market.escrow.errors import SettlementRefused

PREFIX = "InferenceEscrow_"
"""Of the escrow's own errors; other names are OpenZeppelin's."""


class Reverts:
    """The errors of one contract, by selector."""

    def __init__(self, abi: Sequence[Any]) -> None:
        self._errors = {
            keccak(text=abi_to_signature(error))[:4]: error
            for error in filter_abi_by_type("error", abi)
        }

    def read(self, error: Web3Exception) -> SettlementRefused:
        """The refusal behind an exception of web3's."""
        if isinstance(error, ContractCustomError) and isinstance(error.data, str):
            data = bytes(HexBytes(error.data))
            found = self._errors.get(data[:4])
            if found is not None:
                return _refusal(found, data[4:])
        return SettlementRefused(f"The contract refuses the batch: {error}", reason="unknown")


def _refusal(error: Any, data: bytes) -> SettlementRefused:
    name = str(error["name"]).removeprefix(PREFIX)
    try:
        values = decode(get_abi_input_types(error), data)
    except DecodingError:
        values = ()
    names = [str(name) for name in get_abi_input_names(error)]
    named: Mapping[str, Any] = dict(zip(names, values, strict=False))
    told = ", ".join(f"{key} {_shown(value)}" for key, value in named.items())
    return SettlementRefused(
        f"The contract refuses the batch: {name}({told}).",
        reason=name,
        user=str(named["user"]).lower() if "user" in named else None,
        left=named.get("left"),
    )


def _shown(value: Any) -> str:
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)
