"""The escrow's events, read so that neither a reorg in the middle nor a lagging or lying endpoint
can add one or lose one.

An endpoint may switch to another branch between two requests, and an answer about "blocks 5 to 9"
does not say of which branch. Hashes do: a block's hash commits to everything below it.

Nor does such an answer say whether it is complete: an endpoint that has not indexed a block yet
answers with an empty list. The block's header does: where its bloom filter has the escrow and one
of its events, the receipts of the block are read, and they are all there is. So the events of
confirmed blocks are those of headers and receipts, and two endpoints have to show the same. What is
not confirmed yet is read again later, and asked of one endpoint alone.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from eth_typing import ChecksumAddress
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.exceptions import BlockNotFound, Web3Exception, Web3RPCError

from market.chain.blocks import Header, bloom_bits
from market.chain.client import ChainClient
from market.chain.errors import (
    AnswerTooLarge,
    ChainError,
    ChainMoved,
    ChainReorg,
    ChainUnreachable,
)
from market.chain.failover_rpc import FailoverProvider
from market.escrow.artifacts import artifact
from market.escrow.reader import escrow_address
from market.settings.payments import PaymentsSettings

log = structlog.get_logger()

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
"""Events after which a range ends, with the block that has the last of them: so a flood is read in
pieces, each of which counts before the next is read."""


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
class ConfirmedEvents:
    """All events of blocks that no reorg takes away any more, in the chain's order."""

    last: Block
    """The block up to which they are all."""
    receipts_root: str
    """Of that block."""
    timestamp: int
    """That block's own time, in Unix seconds."""
    events: tuple[EscrowEvent, ...]


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
        self._address_bits = bloom_bits(bytes(HexBytes(self.address)))
        self._event_bits = [bloom_bits(bytes(topic)) for topic in self._decoders]

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
        """The hashes of blocks by number, as two endpoints have them; none for a block that they do
        not have.

        Raises:
            ChainMoved: they do not have the same.
        """
        return await self.chain.agreed(lambda chain: _hashes(chain, numbers))

    async def read_after(self, last_read: Block) -> EventRange | None:
        """The range of blocks that follows ``last_read``; none if there is no newer block.

        Raises:
            ChainReorg: ``last_read`` is not on the chain any more.
            ChainMoved: the chain moved meanwhile, and nothing can be said yet.
            ChainError: the endpoint refuses to answer.
        """
        final = await self.chain.final_block(tag=self._finalized, depth=self._confirmations)
        until = max(last_read.number, min(final, last_read.number + MAX_BLOCK_RANGE))
        confirmed = await self.read_confirmed(last_read, until)
        refusal: ChainError | None = None
        for chain in await self.chain.each():
            try:
                return await self._with_unconfirmed(chain, last_read, confirmed, until)
            except (ChainMoved, ChainUnreachable) as error:
                refusal = error
        raise refusal or ChainMoved("No endpoint has blocks now.")

    async def _with_unconfirmed(
        self, chain: ChainClient, last_read: Block, confirmed: ConfirmedEvents, final: int
    ) -> EventRange | None:
        """The range that begins with these confirmed events, with what one endpoint shows after
        block ``final``."""
        head = await chain.head()
        last = min(head, last_read.number + MAX_BLOCK_RANGE)
        read_to, events = confirmed.last.number, list(confirmed.events)
        hashes = await _hashes(chain, [read_to, last])
        if hashes[read_to] != confirmed.last.hash:
            raise ChainMoved(f"The node does not have block {read_to} any more.")
        if last > final == read_to:
            found, read_to = await self._events(chain, read_to + 1, last)
            events += found
        # Below ``last``, whose hash stays, all that was read in between is of its branch.
        if None in hashes.values() or await _hashes(chain, hashes) != hashes:
            raise ChainMoved(f"The chain moved while blocks up to {last} were read.")
        if last <= last_read.number:
            return None
        return EventRange(
            first=last_read.number + 1,
            last=read_to,
            at_head=read_to == head,
            confirmed=confirmed.last,
            confirmed_at=confirmed.timestamp,
            events=events,
        )

    async def read_confirmed(self, last_read: Block, last: int) -> ConfirmedEvents:
        """All events after ``last_read`` up to block ``last``, or fewer blocks where there are more
        than `MAX_RANGE_EVENTS`; as two endpoints show them.

        Raises:
            ChainReorg, ChainMoved, ChainError: as `read_after`.
        """
        found = await self.chain.agreed(lambda chain: self._confirmed(chain, last_read, last))
        if found is None:
            raise ChainReorg(f"Block {last_read.number} is not {last_read.hash} any more.")
        return found

    async def _confirmed(
        self, chain: ChainClient, last_read: Block, last: int
    ) -> ConfirmedEvents | None:
        """`read_confirmed` of one endpoint; none if ``last_read`` is not on its chain."""
        headers = await chain.headers(last_read.number, last)
        if headers[0].hash != last_read.hash:
            return None
        shown, read_to = await self._events(chain, last_read.number + 1, last)
        headers = headers[: read_to - last_read.number + 1]
        events = await self._complete(chain, headers[1:], shown)
        newest = headers[-1]
        return ConfirmedEvents(
            last=Block(newest.number, newest.hash),
            receipts_root=newest.receipts_root,
            timestamp=newest.timestamp,
            events=tuple(events),
        )

    async def _complete(
        self, chain: ChainClient, headers: Sequence[Header], shown: Iterable[EscrowEvent]
    ) -> list[EscrowEvent]:
        """The events of these blocks: by their receipts, wherever some were shown or the header's
        bloom filter says that there may be some. It is wrong about a few blocks in a hundred."""
        by_block = defaultdict(list)
        for event in shown:
            by_block[event.block_number].append(event)
        events: list[EscrowEvent] = []
        for header in headers:
            expected = by_block[header.number]
            if not expected and not self._may_have_events(header):
                continue
            found = self._decode_all(await chain.block_logs(header))
            if found != expected:
                log.warning(
                    "rpc_logs_wrong", block=header.number, shown=len(expected), there=len(found)
                )
            events += found
        return events

    def _may_have_events(self, header: Header) -> bool:
        return self._address_bits & ~header.logs_bloom == 0 and any(
            bits & ~header.logs_bloom == 0 for bits in self._event_bits
        )

    async def _events(
        self, chain: ChainClient, first: int, last: int
    ) -> tuple[list[EscrowEvent], int]:
        """The events of these blocks as the endpoint lists them, in as many requests as it makes
        necessary; and the block up to which these are all: the one with the last of
        `MAX_RANGE_EVENTS`, however many requests it took."""
        events: list[EscrowEvent] = []
        blocks = MAX_BLOCK_RANGE
        while first <= last and len(events) < MAX_RANGE_EVENTS:
            until = min(last, first + blocks - 1)
            try:
                events += await self._get_logs(chain, first, until)
            except (Web3RPCError, AnswerTooLarge):
                if until > first:
                    blocks = (until - first + 1) // 2
                    continue
                [header] = await chain.headers(first, first)
                events += self._decode_all(await chain.block_logs(header))
            first = until + 1
            blocks = min(2 * blocks, MAX_BLOCK_RANGE)
        events.sort(key=_position)
        read_to = first - 1
        if len(events) >= MAX_RANGE_EVENTS:
            read_to = events[MAX_RANGE_EVENTS - 1].block_number
        return [event for event in events if event.block_number <= read_to], read_to

    async def _get_logs(self, chain: ChainClient, first: int, last: int) -> list[EscrowEvent]:
        found = await chain.web3.eth.get_logs(
            {
                "address": self.address,
                "fromBlock": first,
                "toBlock": last,
                "topics": [list(self._decoders)],
            }
        )
        return [self._decode(entry) for entry in found if not entry.get("removed")]

    def _decode_all(self, logs: Iterable[Any]) -> list[EscrowEvent]:
        """Those of the logs that are events of the escrow's."""
        return [
            self._decode(entry)
            for entry in logs
            if entry["address"] == self.address
            and entry["topics"]
            and HexBytes(entry["topics"][0]) in self._decoders
        ]

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


async def _hashes(chain: ChainClient, numbers: Collection[int]) -> dict[int, str | None]:
    """The hashes of blocks by number; none for a block that the endpoint does not have."""
    hashes: dict[int, str | None] = {}
    for number in sorted(set(numbers)):
        try:
            block = await chain.web3.eth.get_block(number)
            hashes[number] = HexBytes(block["hash"]).to_0x_hex()
        except BlockNotFound:
            hashes[number] = None
    return hashes


def _position(event: EscrowEvent) -> tuple[int, int]:
    return event.block_number, event.log_index


def _text(value: Any) -> str:
    """An argument as `EscrowEvent.arguments` has it."""
    if isinstance(value, bytes):
        return HexBytes(value).to_0x_hex()
    return str(value).lower()
