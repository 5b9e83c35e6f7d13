"""Fees of a transaction, fee bumps, and signed bytes."""

from dataclasses import dataclass
from typing import Any

from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from market.chain.signer import Signer

FEE_BUMP_DIVISOR = 8
"""A replacement offers an eighth more. Nodes ask for a tenth more, and may round."""


@dataclass(frozen=True, slots=True)
class Fees:
    """Wei for each unit of gas."""

    maximum: int
    """EIP-1559's ``maxFeePerGas``; the gas price on a chain without EIP-1559."""
    priority: int | None
    """EIP-1559's ``maxPriorityFeePerGas``; none on a chain without EIP-1559."""

    def fields(self) -> dict[str, int]:
        """The transaction's fields: of type 2 (EIP-1559), or of type 1 with a plain gas price."""
        if self.priority is None:
            return {"type": 1, "gasPrice": self.maximum}
        return {"type": 2, "maxFeePerGas": self.maximum, "maxPriorityFeePerGas": self.priority}

    def at_most(self, ceiling: int) -> "Fees":
        """These fees, but no field above ``ceiling``."""
        priority = None if self.priority is None else min(self.priority, ceiling)
        return Fees(min(self.maximum, ceiling), priority)

    def bumped(self, suggested: "Fees") -> "Fees":
        """Fees of a transaction that replaces one with these: higher by an eighth in every field,
        and no lower than what the chain suggests now."""
        if self.priority is None:
            return Fees(max(_bumped(self.maximum), suggested.maximum), None)
        priority = max(_bumped(self.priority), suggested.priority or 0)
        return Fees(max(_bumped(self.maximum), suggested.maximum, priority), priority)


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """Bytes that are ready to send, and the transaction hash that they will have."""

    raw: bytes
    hash: str
    nonce: int


async def sign_transaction(
    signer: Signer,
    *,
    chain_id: int,
    to: str,
    data: bytes,
    nonce: int,
    gas: int,
    fees: Fees,
) -> SignedTransaction:
    """Sign a call of a contract; nothing is sent.

    Raises:
        ChainError: the signer does not sign.
    """
    fields: dict[str, Any] = {
        "chainId": chain_id,
        "to": to_checksum_address(to),
        "data": data,
        "nonce": nonce,
        "gas": gas,
        "value": 0,
        **fees.fields(),
    }
    signature = await signer.sign(TypedTransaction.from_dict(dict(fields)).hash())
    signed = TypedTransaction.from_dict(fields | signature._asdict())
    raw = signed.encode()
    return SignedTransaction(raw=raw, hash="0x" + keccak(raw).hex(), nonce=nonce)


def _bumped(fee: int) -> int:
    return fee + -(-fee // FEE_BUMP_DIVISOR) + 1
