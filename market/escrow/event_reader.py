"""The escrow's events, read so that a reorganisation in the middle cannot slip through.

A node may switch to another branch between two of our questions, and an answer about "blocks 5 to
9" does not say of which branch. Hashes do: a block's hash commits to everything below it. So each
reading is framed by the hashes of blocks at its edges, asked before and after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_typing import ChecksumAddress
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.exceptions import BlockNotFound, Web3Exception, Web3RPCError

from market.chain.client import ChainClient
from market.chain.errors import AnswerTooLarge, ChainError, ChainMoved, Reorganised
from market.chain.failover_rpc import FailoverProvider
from market.escrow.artifacts import artifact
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
"""Those that move or bound what somebody has with us."""

MAX_BLOCK_RANGE = 2000
"""Blocks in one reading: what public BSC nodes allow for eth_getLogs, and more."""


@dataclass(frozen=True, slots=True)
class EscrowEvent:
    """One event of the escrow.

    ``arguments`` holds text only: addresses in lower case, numbers in decimal, bytes in hex.
    """

    transaction_hash: str
    log_index: int
    block_number: int
    block_hash: str
    name: str
    arguments: dict[str, str]

    @property
    def wallet(self) -> str | None:
        """Whose money or cap it is about; none for a batch."""
        return self.arguments.get("user") or self.arguments.get("account")

    def units(self, argument: str) -> int:
        """An amount, in base units."""
        return int(self.arguments[argument])


@dataclass(frozen=True, slots=True)
class Block:
    """A block by which a branch of the chain can be told from others."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True)
class EventRange:
    """All events after one block up to another, on one branch."""

    first: int
    last: int
    at_head: bool
    """Whether ``last`` was the newest block."""
    confirmed: Block
    """The newest block that counts; below ``first`` if none of these does."""
    events: list[EscrowEvent]


class EscrowEventReader:
    """Reads the events of one escrow over one RPC endpoint.

    Args:
        confirmations: Blocks on top of one that counts.
        finalized: Count what the chain itself calls finalized, where it does, whatever the depth.
    """

    def __init__(
        self, network: ChainClient, address: str, *, confirmations: int, finalized: bool = False
    ) -> None:
        self.web3 = network.web3
        self._network = network
        self._confirmations = confirmations
        self._finalized = finalized
        self.address: ChecksumAddress = AsyncWeb3.to_checksum_address(address)
        contract = self.web3.eth.contract(abi=artifact("InferenceEscrow")["abi"])
        self._decoders = {
            HexBytes(contract.events[name]().topic): contract.events[name]() for name in EVENTS
        }
        self._span = MAX_BLOCK_RANGE

    @classmethod
    def of(cls, payments: PaymentsSettings) -> "EscrowEventReader":
        """The events of the contract that the settings name.

        Raises:
            ChainError: they name none.
        """
        if not payments.escrow_contract:
            raise ChainError("No escrow contract is set (FAR_PAYMENTS__ESCROW_CONTRACT).")
        return cls(
            ChainClient(FailoverProvider.of(payments)),
            payments.escrow_contract,
            confirmations=payments.confirmations,
            finalized=payments.finalized_tag,
        )

    async def close(self) -> None:
        await self._network.close()

    async def head(self) -> int:
        """Number of the newest block."""
        return await self._network.head()

    async def hashes(self, numbers: Sequence[int]) -> dict[int, str | None]:
        """The hashes of blocks; none for one that the node does not have."""
        return {number: await self._hash(number) for number in sorted(set(numbers))}

    async def read_after(self, known: Block) -> EventRange | None:
        """The next range of blocks after one that was read; none if there is no new one.

        Raises:
            Reorganised: ``known`` is not on the chain any more.
            ChainMoved: the chain moved meanwhile; nothing can be said yet.
            ChainError: the node refuses to answer.
        """
        head = await self.head()
        last = min(head, known.number + MAX_BLOCK_RANGE)
        final = await self._network.final_block(tag=self._finalized, depth=self._confirmations)
        final = max(known.number, min(last, final))
        frame = await self.hashes([known.number, final, last])
        if frame[known.number] is None:
            raise ChainMoved(f"The node is behind block {known.number}, which it had before.")
        if frame[known.number] != known.hash:
            raise Reorganised(f"Block {known.number} is not {known.hash} any more.")
        if last <= known.number:
            return None
        events = await self._logs(known.number + 1, last)
        if None in frame.values() or await self.hashes(list(frame)) != frame:
            raise ChainMoved(f"The chain moved while blocks up to {last} were read.")
        final_hash = frame[final]
        assert final_hash is not None
        return EventRange(
            first=known.number + 1,
            last=last,
            at_head=last == head,
            confirmed=Block(final, final_hash),
            events=events,
        )

    async def _logs(self, first: int, last: int) -> list[EscrowEvent]:
        """Asks for fewer blocks at once wherever the node finds a range too large."""
        events: list[EscrowEvent] = []
        while first <= last:
            until = min(last, first + self._span - 1)
            try:
                events += await self._logs_at_once(first, until)
            except (Web3RPCError, AnswerTooLarge) as error:
                if until == first:
                    raise ChainError(f"The node refuses block {first}'s events: {error}") from error
                self._span = (until - first + 1) // 2
                continue
            first = until + 1
            self._span = min(2 * self._span, MAX_BLOCK_RANGE)
        return sorted(events, key=lambda event: (event.block_number, event.log_index))

    async def _logs_at_once(self, first: int, last: int) -> list[EscrowEvent]:
        found = await self.web3.eth.get_logs(
            {
                "address": self.address,
                "fromBlock": first,
                "toBlock": last,
                "topics": [list(self._decoders)],
            }
        )
        return [self._decoded(entry) for entry in found if not entry.get("removed")]

    def _decoded(self, entry: Any) -> EscrowEvent:
        try:
            decoded = self._decoders[HexBytes(entry["topics"][0])].process_log(entry)
        except (Web3Exception, KeyError, IndexError) as error:
            raise ChainError(
                f"The node tells of an event that the escrow has not: {error}"
            ) from error
        return EscrowEvent(
            transaction_hash=HexBytes(decoded["transactionHash"]).to_0x_hex(),
            log_index=decoded["logIndex"],
            block_number=decoded["blockNumber"],
            block_hash=HexBytes(decoded["blockHash"]).to_0x_hex(),
            name=decoded["event"],
            arguments={name: _text(value) for name, value in decoded["args"].items()},
        )

    async def _hash(self, number: int) -> str | None:
        try:
            block = await self.web3.eth.get_block(number)
        except BlockNotFound:
            return None
        return HexBytes(block["hash"]).to_0x_hex()


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return HexBytes(value).to_0x_hex()
    return str(value).lower()
