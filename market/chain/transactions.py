"""Fees, and signed bytes."""

from dataclasses import dataclass
from typing import Any

from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from market.chain.signer import Signer

FEE_BUMP_DIVISOR = 8
"""A replacement offers an eighth more. Nodes want a tenth; the rest is room for their rounding."""


@dataclass(frozen=True, slots=True)
class Fees:
    """Wei for each unit of gas. ``priority`` is none on a chain without EIP-1559: there
    ``maximum`` is the gas price."""

    maximum: int
    priority: int | None

    def fields(self) -> dict[str, int]:
        """The transaction's fields. Type 1 is what carries a plain gas price."""
        if self.priority is None:
            return {"type": 1, "gasPrice": self.maximum}
        return {"type": 2, "maxFeePerGas": self.maximum, "maxPriorityFeePerGas": self.priority}

    def capped(self, ceiling: int) -> "Fees":
        """At most ``ceiling``."""
        priority = None if self.priority is None else min(self.priority, ceiling)
        return Fees(min(self.maximum, ceiling), priority)

    def bumped(self, now: "Fees") -> "Fees":
        """What replaces a transaction with these fees: enough more in every field, and no less
        than what the network asks ``now``."""
        if self.priority is None:
            return Fees(max(_bumped(self.maximum), now.maximum), None)
        priority = max(_bumped(self.priority), now.priority or 0)
        return Fees(max(_bumped(self.maximum), now.maximum, priority), priority)


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """Bytes ready to send, and the hash under which the chain will know them."""

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
