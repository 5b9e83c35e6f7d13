"""A client of an EVM chain: nonces, fees, sending, receipts, finality."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from eth_typing import HexStr
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.exceptions import (
    BlockNotFound,
    MethodUnavailable,
    TransactionNotFound,
    Web3RPCError,
)
from web3.middleware import ExtraDataToPOAMiddleware
from web3.types import BlockIdentifier

from market.chain.errors import ChainError
from market.chain.failover_rpc import FailoverProvider
from market.chain.transactions import Fees

BASE_FEE_MULTIPLIER = 2
"""Times the base fee that a new transaction offers: six full blocks raise it by no more."""

ALREADY_KNOWN = ("already known", "already imported", "known transaction", "already in mempool")
NONCE_USED = ("nonce too low", "nonce is too low", "invalid transaction nonce")
UNDERPRICED = ("underpriced", "fee too low", "max fee per gas less than block base fee")
"""Error messages of geth, anvil and eth-tester: JSON-RPC has no codes for these refusals."""


class SendOutcome(StrEnum):
    """What became of sending a signed transaction."""

    ACCEPTED = "accepted"
    """An endpoint has it now, or had it already."""
    NONCE_USED = "nonce_used"
    """The transaction was mined, or another one with its nonce."""
    UNDERPRICED = "underpriced"
    """The nonce is taken by one that offers about as much, or the chain asks for more."""


@dataclass(frozen=True, slots=True)
class TransactionReceipt:
    """A mined transaction."""

    hash: str
    block_number: int
    succeeded: bool
    raw: Any
    """web3's receipt, for decoding events."""


class ChainClient:
    """One chain, over its JSON-RPC endpoints.

    Every method raises ChainUnreachable where no endpoint answers, and web3's exceptions where one
    answers with an error.
    """

    def __init__(self, provider: FailoverProvider) -> None:
        self.web3 = AsyncWeb3(provider)
        # BSC's validators sign in `extraData`, which is then longer than Ethereum's.
        self.web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
        self._provider = provider
        self._chain_id: int | None = None

    async def close(self) -> None:
        await self._provider.disconnect()

    async def chain_id(self) -> int:
        """EIP-155 id, read once."""
        if self._chain_id is None:
            self._chain_id = int(await self.web3.eth.chain_id)
        return self._chain_id

    async def head(self) -> int:
        """Number of the newest block."""
        return int(await self.web3.eth.block_number)

    async def latest_timestamp(self) -> int:
        """The chain's own time, that of its newest block, in Unix seconds."""
        return int((await self.web3.eth.get_block("latest"))["timestamp"])

    async def final_block(self, *, tag: bool, depth: int) -> int:
        """The newest block that no reorg takes away any more.

        Args:
            tag: Ask for the chain's own ``finalized`` block.
            depth: Blocks below the head that count as final where the chain has no such block, or
                only its first: a chain without finality shows the tag and means nothing by it.
        """
        if tag:
            try:
                number = int((await self.web3.eth.get_block("finalized"))["number"])
            except (BlockNotFound, Web3RPCError):
                number = 0
            if number:
                return number
        return max(0, await self.head() - depth)

    async def nonce(self, account: str, block: BlockIdentifier = "latest") -> int:
        """How many transactions of the account are mined, as of ``block``."""
        address = AsyncWeb3.to_checksum_address(account)
        return int(await self.web3.eth.get_transaction_count(address, block))

    async def balance(self, account: str) -> int:
        """The account's coins of the chain, which pay for gas, in wei."""
        return int(await self.web3.eth.get_balance(AsyncWeb3.to_checksum_address(account)))

    async def suggested_fees(self) -> Fees:
        """Fees that get a transaction into one of the next blocks."""
        block = await self.web3.eth.get_block("latest")
        base = block.get("baseFeePerGas")
        if base is None:
            return Fees(int(await self.web3.eth.gas_price), None)
        try:
            priority = int(await self.web3.eth.max_priority_fee)
        except (MethodUnavailable, Web3RPCError):
            priority = max(0, int(await self.web3.eth.gas_price) - int(base))
        return Fees(BASE_FEE_MULTIPLIER * int(base) + priority, priority)

    async def send(self, raw: bytes) -> SendOutcome:
        """Send a signed transaction to every endpoint. Sending it again changes nothing.

        Raises:
            ChainUnreachable: no endpoint answered. Some may have the transaction all the same.
            ChainError: all refuse it, for another reason than `SendOutcome` names.
        """
        answers = await self._provider.broadcast(
            "eth_sendRawTransaction", [HexBytes(raw).to_0x_hex()]
        )
        messages = [_error_message(answer) for answer in answers]
        if any(not message or _contains_any(message, ALREADY_KNOWN) for message in messages):
            return SendOutcome.ACCEPTED
        if any(_contains_any(message, NONCE_USED) for message in messages):
            return SendOutcome.NONCE_USED
        if any(_contains_any(message, UNDERPRICED) for message in messages):
            return SendOutcome.UNDERPRICED
        raise ChainError(f"The network refused a transaction: {messages[0]}")

    async def transaction_receipt(self, transaction_hash: str) -> TransactionReceipt | None:
        """The receipt of a mined transaction; none for one that is not mined."""
        try:
            raw = await self.web3.eth.get_transaction_receipt(HexStr(transaction_hash))
        except TransactionNotFound:
            return None
        return TransactionReceipt(
            hash=transaction_hash,
            block_number=int(raw["blockNumber"]),
            succeeded=raw["status"] == 1,
            raw=raw,
        )


def _error_message(answer: Any) -> str:
    """What a JSON-RPC answer complains of; empty for a result."""
    error = answer.get("error")
    if error is None:
        return ""
    return str(error.get("message") if isinstance(error, dict) else error) or "no reason"


def _contains_any(message: str, phrases: Sequence[str]) -> bool:
    lower = message.lower()
    return any(phrase in lower for phrase in phrases)
