"""The escrow's events, read so that a reorg in the middle cannot slip through.

An endpoint may switch to another branch between two requests, and an answer about "blocks 5 to 9"
does not say of which branch. Hashes do: a block's hash commits to everything below it. So the
hashes of the blocks at a range's edges are read before its events, and compared after them.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from eth_typing import ChecksumAddress
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.exceptions import BlockNotFound, Web3Exception, Web3RPCError

from market.chain.client import ChainClient
from market.chain.errors import AnswerTooLarge, ChainError, ChainMoved, ChainReorg
from market.chain.failover_rpc import FailoverProvider
from market.escrow.artifacts import artifact
from market.escrow.reader import escrow_address
from market.settings.payments import PaymentsSettings

EVENTS = (
    "Deposited",
    "WithdrawalRequested",
    "WithdrawalCancelled",
    "Withdrawn",
    "CapRaised",
    "CapLoweringRequested",
    "CapLoweringCancelled",
    "CapLowered",
    "BatchSettled",
    "FeeCredited",
    "Claimed",
)
"""The events that move money, or bound what may be debited."""

MAX_BLOCK_RANGE = 2000
"""Blocks in one range: as many as public BSC nodes allow for eth_getLogs."""

MAX_RANGE_EVENTS = 5000
"""Events after which a range ends, at the end of the request that brought them: so a flood is read
in pieces, each of which counts before the next is read."""


@dataclass(frozen=True, slots=True)
class EscrowEvent:
    """One event of the escrow.

    ``arguments`` are text: addresses in lower case, numbers in decimal, bytes in 0x-prefixed hex.
    """

    transaction_hash: str
    log_index: int
    block_number: int
    block_hash: str
    name: str
    arguments: dict[str, str]

    @property
    def wallet(self) -> str | None:
        """Whose money or cap the event is about; none for a batch."""
        return self.arguments.get("user") or self.arguments.get("account")

    def units(self, argument: str) -> int:
        """An argument that is an amount, in base units."""
        return int(self.arguments[argument])


@dataclass(frozen=True, slots=True)
class Block:
    """A block, and the hash that tells its branch from others."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True)
class EventRange:
    """All events from block ``first`` to block ``last``, on one branch."""

    first: int
    last: int
    at_head: bool
    """Whether ``last`` was the chain's newest block."""
    confirmed: Block
    """The newest confirmed block up to ``last``; before ``first`` if none of the range is."""
    confirmed_at: int
    """That block's own time, in Unix seconds."""
    events: list[EscrowEvent]


class EscrowEventReader:
    """Reads the events of one escrow contract.

    Args:
        confirmations: Blocks on top of a block that is confirmed.
        finalized: Take the chain's own finalized block as the newest confirmed one, where the
            chain has finality.
    """

    def __init__(
        self, chain: ChainClient, address: str, *, confirmations: int, finalized: bool = False
    ) -> None:
        self.chain = chain
        self.address: ChecksumAddress = AsyncWeb3.to_checksum_address(address)
        self._confirmations = confirmations
        self._finalized = finalized
        contract = chain.web3.eth.contract(abi=artifact("InferenceEscrow")["abi"])
        self._decoders = {
            HexBytes(contract.events[name]().topic): contract.events[name]() for name in EVENTS
        }
        self._blocks_per_request = MAX_BLOCK_RANGE

    @classmethod
    @asynccontextmanager
    async def from_settings(cls, payments: PaymentsSettings) -> AsyncIterator["EscrowEventReader"]:
        """A reader of the events of the contract that the settings name, closed at the end.

        Raises:
            ChainError: the settings name no contract.
        """
        address = escrow_address(payments)
        reader = cls(
            ChainClient(FailoverProvider.from_settings(payments)),
            address,
            confirmations=payments.confirmations,
            finalized=payments.finalized_tag,
        )
        try:
            yield reader
        finally:
            await reader.chain.close()

    async def hashes(self, numbers: Collection[int]) -> dict[int, str | None]:
        """The hashes of blocks by number; none for a block that the endpoint does not have."""
        blocks = {number: await self._block(number) for number in sorted(set(numbers))}
        return {number: block and _hash(block) for number, block in blocks.items()}

    async def read_after(self, last_read: Block) -> EventRange | None:
        """The range of blocks that follows ``last_read``; none if there is no newer block.

        Raises:
            ChainReorg: ``last_read`` is not on the chain any more.
            ChainMoved: the chain moved meanwhile, and nothing can be said yet.
            ChainError: the endpoint refuses to answer.
        """
        head = await self.chain.head()
        last = min(head, last_read.number + MAX_BLOCK_RANGE)
        final = await self.chain.final_block(tag=self._finalized, depth=self._confirmations)
        edges = await self.hashes([last_read.number, last])
        if edges[last_read.number] is None:
            raise ChainMoved(f"The node is behind block {last_read.number}, which it had before.")
        if edges[last_read.number] != last_read.hash:
            raise ChainReorg(f"Block {last_read.number} is not {last_read.hash} any more.")
        if last <= last_read.number:
            return None
        events, read_to = await self._events(last_read.number + 1, last)
        confirmed = await self._block(max(last_read.number, min(read_to, final)))
        # Below ``last``, whose hash stays, all that was read in between is of its branch.
        if confirmed is None or None in edges.values() or await self.hashes(edges) != edges:
            raise ChainMoved(f"The chain moved while blocks up to {last} were read.")
        return EventRange(
            first=last_read.number + 1,
            last=read_to,
            at_head=read_to == head,
            confirmed=Block(int(confirmed["number"]), _hash(confirmed)),
            confirmed_at=int(confirmed["timestamp"]),
            events=events,
        )

    async def _events(self, first: int, last: int) -> tuple[list[EscrowEvent], int]:
        """The events of these blocks, in as many requests as the endpoint makes necessary, until
        there are `MAX_RANGE_EVENTS`; and the block up to which these are all."""
        events: list[EscrowEvent] = []
        while first <= last and len(events) < MAX_RANGE_EVENTS:
            until = min(last, first + self._blocks_per_request - 1)
            try:
                events += await self._get_logs(first, until)
            except (Web3RPCError, AnswerTooLarge) as error:
                if until > first:
                    self._blocks_per_request = (until - first + 1) // 2
                    continue
                events += await self._block_events(first, error)
            first = until + 1
            self._blocks_per_request = min(2 * self._blocks_per_request, MAX_BLOCK_RANGE)
        return sorted(events, key=lambda event: (event.block_number, event.log_index)), first - 1

    async def _block_events(self, number: int, refusal: Exception) -> list[EscrowEvent]:
        """The events of one block that is too large for an answer, by its transactions' receipts.

        Raises:
            ChainError: the endpoint does not show these either.
        """
        block = await self._block(number)
        if block is None or "transactions" not in block:
            raise ChainError(f"The node refuses block {number}'s events: {refusal}") from refusal
        events = []
        for transaction in block["transactions"]:
            try:
                receipt = await self.chain.web3.eth.get_transaction_receipt(transaction)
            except (Web3Exception, AnswerTooLarge) as error:
                raise ChainError(f"The node refuses block {number}'s events: {error}") from error
            events += [
                self._decode(entry)
                for entry in receipt["logs"]
                if entry["address"] == self.address
                and entry["topics"]
                and HexBytes(entry["topics"][0]) in self._decoders
            ]
        return events

    async def _get_logs(self, first: int, last: int) -> list[EscrowEvent]:
        found = await self.chain.web3.eth.get_logs(
            {
                "address": self.address,
                "fromBlock": first,
                "toBlock": last,
                "topics": [list(self._decoders)],
            }
        )
        return [self._decode(entry) for entry in found if not entry.get("removed")]

    def _decode(self, entry: Any) -> EscrowEvent:
        try:
            decoded = self._decoders[HexBytes(entry["topics"][0])].process_log(entry)
        except (Web3Exception, KeyError, IndexError) as error:
            raise ChainError(
                f"The node shows an event that the escrow does not have: {error}"
            ) from error
        return EscrowEvent(
            transaction_hash=HexBytes(decoded["transactionHash"]).to_0x_hex(),
            log_index=decoded["logIndex"],
            block_number=decoded["blockNumber"],
            block_hash=HexBytes(decoded["blockHash"]).to_0x_hex(),
            name=decoded["event"],
            arguments={name: _text(value) for name, value in decoded["args"].items()},
        )

    async def _block(self, number: int) -> Any:
        """web3's block; none for one that the endpoint does not have."""
        try:
            return await self.chain.web3.eth.get_block(number)
        except BlockNotFound:
            return None


def _hash(block: Any) -> str:
    return HexBytes(block["hash"]).to_0x_hex()


def _text(value: Any) -> str:
    """An argument as `EscrowEvent.arguments` has it."""
    if isinstance(value, bytes):
        return HexBytes(value).to_0x_hex()
    return str(value).lower()
