"""The contract's custom errors, decoded by its ABI."""

from typing import Any

from eth_abi.abi import encode
from eth_utils.abi import abi_to_signature, get_abi_input_types
from eth_utils.crypto import keccak
from web3.exceptions import ContractCustomError, ContractLogicError

from market.escrow.artifacts import artifact
from market.escrow.reverts import decode_refusal

USER = "0x" + "aB" * 20


def reverted(name: str, *values: Any) -> ContractCustomError:
    """What web3 raises when the contract reverts with this error."""
    abi = artifact("InferenceEscrow")["abi"]
    (error,) = (each for each in abi if each["type"] == "error" and each["name"] == name)
    selector = keccak(text=abi_to_signature(error))[:4]
    data = "0x" + (selector + encode(get_abi_input_types(error), values)).hex()
    return ContractCustomError(data, data=data)


def test_a_shortfall_names_its_user() -> None:
    refusal = decode_refusal(reverted("InferenceEscrow_InsufficientDeposit", USER, 5, 6))
    assert refusal.reason == "InsufficientDeposit"
    assert refusal.user == USER.lower()


def test_a_ceiling_says_what_is_left() -> None:
    refusal = decode_refusal(reverted("InferenceEscrow_DailyCeilingExceeded", 7, 8))
    assert (refusal.reason, refusal.left, refusal.user) == ("DailyCeilingExceeded", 7, None)


def test_an_error_of_openzeppelin_keeps_its_name() -> None:
    assert decode_refusal(reverted("EnforcedPause")).reason == "EnforcedPause"


def test_an_error_that_the_contract_does_not_have_is_unknown() -> None:
    assert decode_refusal(ContractCustomError("0x12345678", data="0x12345678")).reason == "unknown"
    assert decode_refusal(ContractLogicError("execution reverted")).reason == "unknown"
