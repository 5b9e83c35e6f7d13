"""A client of an EVM chain: blocks, nonces, fees, sending, finality, and what two endpoints say."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from eth_typing import HexStr
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.exceptions import (
    BlockNotFound,
    MethodUnavailable,
    TransactionNotFound,
    Web3Exception,
    Web3RPCError,
)
from web3.types import BlockIdentifier, RPCEndpoint

from market.chain.blocks import Header, parse_header, parse_logs
from market.chain.errors import AnswerTooLarge, ChainError, ChainMoved, ChainUnreachable
from market.chain.failover_rpc import Endpoint, FailoverProvider
from market.chain.open_web3 import open_async_web3
from market.chain.rpc_errors import SendOutcome, error_message, refusal
from market.chain.transactions import Fees

BASE_FEE_MULTIPLIER = 2
"""Times the base fee that a new transaction offers: six full blocks raise it by no more."""

REFUSALS = (ChainError, Web3Exception, OSError, ValueError, TypeError, LookupError, AttributeError)
"""What asking one endpoint may raise: it refuses, or what it shows makes no sense."""

QUORUM = 2
"""Endpoints that have to say the same before it moves money, where there are as many."""

Answer = TypeVar("Answer")


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

    def __init__(self, provider: FailoverProvider | Endpoint) -> None:
        self.web3 = open_async_web3(provider)
        self._provider = provider
        self._chain_id: int | None = None

    async def close(self) -> None:
        await self._provider.disconnect()

    async def agreed(self, ask: Callable[["ChainClient"], Awaitable[Answer]]) -> Answer:
        """What `QUORUM` endpoints say, each asked alone; what one says where there is but one.

        Args:
            ask: Asks a client of one endpoint. Two answers are one where they are equal.

        Raises:
            ChainMoved: too few say the same: one is behind, or lies.
            ChainUnreachable: too few answer at all.
        """
        if len(self._provider.endpoints) == 1:
            return await ask(self)
        waiting = [ChainClient(endpoint) for endpoint in await self._provider.answering()]
        answers: list[Answer] = []
        refusals: list[Exception] = []
        while waiting:
            count = max(1, QUORUM - len(answers))
            asked, waiting = waiting[:count], waiting[count:]
            for outcome in await asyncio.gather(*map(ask, asked), return_exceptions=True):
                if isinstance(outcome, REFUSALS):
                    refusals.append(outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
                elif outcome in answers:
                    return outcome
                else:
                    answers.append(outcome)
        said = (
            "; ".join(f"{type(each).__name__}: {each}" for each in refusals)
            or "no two of them say the same"
        )
        reason = f"Of {len(self._provider.endpoints)} endpoints {len(answers)} answer: {said}."
        moved = len(answers) > 1 or any(isinstance(each, ChainMoved) for each in refusals)
        raise ChainMoved(reason) if moved else ChainUnreachable(reason)

    async def each(self) -> list["ChainClient"]:
        """A client of each endpoint whose newest block may be believed, the best first.

        Raises:
            ChainUnreachable: there is none.
        """
        if len(self._provider.endpoints) == 1:
            return [self]
        return [ChainClient(endpoint) for endpoint in await self._provider.best_first()]

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
        """The newest block that no reorg takes away any more, as `QUORUM` endpoints see it.

        Args:
            tag: Ask for the chain's own ``finalized`` block.
            depth: Blocks below the head that count as final where the chain has no such block, or
                only its first: a chain without finality shows the tag and means nothing by it.
        """
        if len(self._provider.endpoints) == 1:
            return await self._final_block(tag, depth)
        clients = [ChainClient(endpoint) for endpoint in await self._provider.answering()]
        found = await asyncio.gather(
            *(client._final_block(tag, depth) for client in clients), return_exceptions=True
        )
        for outcome in found:
            if isinstance(outcome, BaseException) and not isinstance(outcome, REFUSALS):
                raise outcome
        numbers = sorted(each for each in found if isinstance(each, int))
        if len(numbers) < QUORUM:
            raise ChainUnreachable(
                f"Of {len(self._provider.endpoints)} endpoints {len(numbers)} say what is final: "
                f"{QUORUM} are needed."
            )
        return numbers[-QUORUM]

    async def _final_block(self, tag: bool, depth: int) -> int:
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
        messages = [error_message(answer) for answer in answers]
        outcomes = {refusal(each) if each else SendOutcome.ACCEPTED for each in messages}
        for outcome in SendOutcome:  # the most hopeful first
            if outcome in outcomes:
                return outcome
        raise ChainError(f"The network refused a transaction: {messages[0]}")

    async def headers(self, first: int, last: int) -> list[Header]:
        """The headers of these blocks, each of which is the parent of the next one.

        Raises:
            ChainMoved: an endpoint does not have them all, or has changed branches meanwhile.
        """
        requests = [
            (RPCEndpoint("eth_getBlockByNumber"), [hex(number), False])
            for number in range(first, last + 1)
        ]
        headers: list[Header] = []
        answers = await self._provider.make_batch_request(requests)
        for number, answer in zip(range(first, last + 1), answers, strict=True):
            block: Any = answer.get("result")
            if block is None:
                raise ChainMoved(f"The node is behind block {number}: {error_message(answer)}")
            header = parse_header(block)
            if header.number != number or (headers and header.parent_hash != headers[-1].hash):
                raise ChainMoved(f"The chain moved while block {number} was read.")
            headers.append(header)
        return headers

    async def block_logs(self, header: Header) -> list[dict[str, Any]]:
        """All logs of a block, from its transactions' receipts, as web3's events decode them.

        Raises:
            ChainMoved: the endpoint has another block in its place.
            ChainError: it does not show the receipts.
        """
        try:
            found = await self._receipts(header)
        except AnswerTooLarge as error:
            raise ChainError(
                f"The node refuses block {header.number}'s receipts: {error}"
            ) from error
        try:
            shown = {receipt["transactionHash"] for receipt in found}
            branches = {receipt["blockHash"] for receipt in found}
            logs = [log for receipt in found for log in receipt["logs"]]
        except (KeyError, TypeError) as error:
            raise ChainError(f"The node shows a receipt without some field: {error!r}") from error
        if not shown.issuperset(header.transactions) or not branches <= {header.hash}:
            raise ChainMoved(f"The node shows other receipts than block {header.number}'s.")
        return parse_logs(logs)

    async def _receipts(self, header: Header) -> list[dict[str, Any]]:
        """A block's receipts, in one request where the endpoint has a method for it and they are
        not too many."""
        try:
            request = (RPCEndpoint("eth_getBlockReceipts"), [hex(header.number)])
            [answer] = await self._provider.make_batch_request([request])
        except AnswerTooLarge:
            answer = {"jsonrpc": "2.0", "id": None}
        whole: Any = answer.get("result")
        if whole is not None:
            return list(whole)
        requests = [
            (RPCEndpoint("eth_getTransactionReceipt"), [transaction])
            for transaction in header.transactions
        ]
        answers = await self._provider.make_batch_request(requests)
        for each in answers:
            if error_message(each):
                raise ChainError(
                    f"The node refuses block {header.number}'s receipts: {error_message(each)}"
                )
        receipts: list[Any] = [each.get("result") for each in answers]
        return [receipt for receipt in receipts if receipt is not None]

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
