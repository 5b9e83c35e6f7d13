"""Signed transactions: checked as geth's pool checks them, and mined at once, each in a block."""

from typing import Any

from eth.abc import SignedTransactionAPI
from eth.exceptions import PyEVMError
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError
from eth_utils.hexadecimal import encode_hex
from rlp.exceptions import RLPException

from stack.dev_chain.errors import RpcError
from stack.dev_chain.evm.chain import CHAIN_ID, GAS_LIMIT, DevelopmentChain, base_fee
from stack.dev_chain.evm.execution import minimum_gas
from stack.dev_chain.params import LATEST

MAX_WAITING = 1024
"""Transactions that wait for one before them; geth's limit for them."""

PRICE_BUMP = 10
"""Percent that both fees of a replacement have to be higher; geth's."""

BLOB_TRANSACTION = 3


class Pool:
    """Takes transactions in any order, and mines each as soon as its nonce is the next."""

    def __init__(self, chain: DevelopmentChain) -> None:
        self._chain = chain
        self._waiting: dict[tuple[bytes, int], SignedTransactionAPI] = {}

    def waiting(self, transaction_hash: bytes) -> SignedTransactionAPI | None:
        """A transaction that waits for others of its sender."""
        for transaction in self._waiting.values():
            if transaction.hash == transaction_hash:
                return transaction
        return None

    def clear(self) -> None:
        self._waiting.clear()

    def add(self, raw: bytes) -> bytes:
        """Mine a transaction, and those that waited for it; returns its hash.

        Raises:
            RpcError: it cannot be mined on this chain, or its nonce is taken.
        """
        transaction = self._decode(raw)
        following = self._check(transaction)
        if following:
            self._wait(transaction)
            return transaction.hash
        self._chain.mine(transaction)
        self._mine_waiting(transaction.sender, transaction.nonce + 1)
        return transaction.hash

    def _decode(self, raw: bytes) -> SignedTransactionAPI:
        try:
            transaction = self._chain.decode(raw)
            transaction.validate()
        except (RLPException, PyEVMError, ValidationError, ValueError, IndexError) as error:
            raise RpcError(f"rlp: {error}") from error
        if transaction.type_id == BLOB_TRANSACTION:
            raise RpcError("transaction type not supported")
        if transaction.chain_id is None:
            raise RpcError("only replay-protected (EIP-155) transactions allowed over RPC")
        if transaction.chain_id != CHAIN_ID:
            raise RpcError(
                f"invalid chain id for signer: have {transaction.chain_id} want {CHAIN_ID}"
            )
        try:
            transaction.check_signature_validity()
        except (ValidationError, BadSignature) as error:
            raise RpcError("invalid sender") from error
        return transaction

    def _check(self, transaction: SignedTransactionAPI) -> bool:
        """Whether the transaction has to wait for others of its sender; raises if it is invalid."""
        if transaction.gas > GAS_LIMIT:
            raise RpcError("exceeds block gas limit")
        fee, tip = fees(transaction)
        if tip > fee:
            raise RpcError(
                "max priority fee per gas higher than max fee per gas: "
                f"address {_text(transaction)}, maxPriorityFeePerGas: {tip}, maxFeePerGas: {fee}"
            )
        least = minimum_gas(transaction)
        if transaction.gas < least:
            raise RpcError(f"intrinsic gas too low: gas {transaction.gas}, minimum needed {least}")
        state = self._chain.state(LATEST)
        nonce = state.get_nonce(transaction.sender)
        if transaction.nonce < nonce:
            raise RpcError(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        balance = state.get_balance(transaction.sender)
        cost = transaction.gas * fee + transaction.value
        if balance < cost:
            raise RpcError(
                f"insufficient funds for gas * price + value: balance {balance}, tx cost {cost}, "
                f"overshot {cost - balance}"
            )
        base = base_fee(self._chain.next_header())
        if fee < base:
            raise RpcError(
                "max fee per gas less than block base fee: "
                f"address {_text(transaction)}, maxFeePerGas: {fee}, baseFee: {base}"
            )
        return bool(transaction.nonce > nonce)

    def _wait(self, transaction: SignedTransactionAPI) -> None:
        key = (bytes(transaction.sender), transaction.nonce)
        old = self._waiting.get(key)
        if old is None and len(self._waiting) >= MAX_WAITING:
            raise RpcError("txpool is full")
        if old is not None and old.hash == transaction.hash:
            raise RpcError("already known")
        if old is not None and any(
            100 * new < (100 + PRICE_BUMP) * before
            for new, before in zip(fees(transaction), fees(old), strict=True)
        ):
            raise RpcError("replacement transaction underpriced")
        self._waiting[key] = transaction

    def _mine_waiting(self, sender: bytes, nonce: int) -> None:
        """Those of a sender that can be mined now; one that has become invalid is dropped."""
        while transaction := self._waiting.pop((bytes(sender), nonce), None):
            try:
                self._check(transaction)
            except RpcError:
                return
            self._chain.mine(transaction)
            nonce += 1


def fees(transaction: SignedTransactionAPI) -> tuple[int, int]:
    """Wei that it pays for a unit of gas at most, and of that to the validator at most."""
    if (transaction.type_id or 0) >= 2:
        return transaction.max_fee_per_gas, transaction.max_priority_fee_per_gas
    price: Any = transaction.gas_price
    return price, price


def _text(transaction: SignedTransactionAPI) -> str:
    return encode_hex(transaction.sender)
