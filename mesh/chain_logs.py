"""The escrow's events, read so that a reorganisation in the middle cannot slip through.

A node may switch to another branch between two of our questions, and an answer about "blocks 5 to
9" does not say of which branch. Hashes do: a block's hash commits to everything below it. So each
reading is framed by the hashes of blocks at its edges, asked before and after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientTimeout
from eth_typing import URI, ChecksumAddress
from hexbytes import HexBytes
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.exceptions import BlockNotFound, Web3Exception, Web3RPCError
from web3.types import RPCEndpoint

from mesh.chain import artifact
from mesh.errors import ChainError
from mesh.settings import PaymentsSettings

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
    "Claimed",
)
"""Those that move or bound what somebody has with us."""

LOG_RANGE = 2000
"""Blocks in one reading: what public BSC nodes allow for eth_getLogs, and more."""

ANSWER_LIMIT = 16 * 2**20
"""Bytes that an RPC endpoint may answer with: some 20,000 events."""

ANSWER_TIME = 20.0
"""Seconds it may take for that."""


class AnswerTooLarge(ChainError):
    """An RPC endpoint answered with more bytes than we take in."""


class Reorganised(ChainError):
    """A block that was final to us is not on the chain any more."""


class ReadAgain(ChainError):
    """The node's view moved while we read, or is behind what was read before."""


@dataclass(frozen=True, slots=True)
class Event:
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
class Reading:
    """All events after one block up to another, on one branch."""

    first: int
    last: int
    at_head: bool
    """Whether ``last`` was the newest block."""
    confirmed: Block
    """The newest block that counts; below ``first`` if none of these does."""
    events: list[Event]


class EventSource:
    """Reads the events of one escrow over one RPC endpoint.

    Args:
        confirmations: Blocks on top of one that counts.
        finalized: Count what the chain itself calls finalized, whatever its depth.
    """

    def __init__(
        self, web3: AsyncWeb3[Any], address: str, *, confirmations: int, finalized: bool = False
    ) -> None:
        self.web3 = web3
        self._confirmations = confirmations
        self._finalized = finalized
        self.address: ChecksumAddress = AsyncWeb3.to_checksum_address(address)
        contract = web3.eth.contract(abi=artifact("InferenceEscrow")["abi"])
        self._decoders = {
            HexBytes(contract.events[name]().topic): contract.events[name]() for name in EVENTS
        }
        self._span = LOG_RANGE

    @classmethod
    def of(cls, payments: PaymentsSettings) -> "EventSource":
        """The events of the contract that the settings name.

        Raises:
            ChainError: they name none.
        """
        if not payments.escrow_contract:
            raise ChainError("No escrow contract is set (FAR_PAYMENTS__ESCROW_CONTRACT).")
        return cls(
            AsyncWeb3(BoundedProvider(payments.rpc_urls[0])),
            payments.escrow_contract,
            confirmations=payments.confirmations,
        )

    async def close(self) -> None:
        await self.web3.provider.disconnect()

    async def head(self) -> int:
        """Number of the newest block."""
        return int(await self.web3.eth.block_number)

    async def final(self, head: int) -> int:
        """Number of the newest block that counts. May be below zero on a young chain."""
        if self._finalized:
            return int((await self.web3.eth.get_block("finalized"))["number"])
        return head - self._confirmations

    async def hashes(self, numbers: Sequence[int]) -> dict[int, str | None]:
        """The hashes of blocks; none for one that the node does not have."""
        return {number: await self._hash(number) for number in sorted(set(numbers))}

    async def read_after(self, known: Block) -> Reading | None:
        """The next range of blocks after one that was read; none if there is no new one.

        Raises:
            Reorganised: ``known`` is not on the chain any more.
            ReadAgain: the chain moved meanwhile; nothing can be said yet.
            ChainError: the node refuses to answer.
        """
        head = await self.head()
        last = min(head, known.number + LOG_RANGE)
        final = max(known.number, min(last, await self.final(head)))
        frame = await self.hashes([known.number, final, last])
        if frame[known.number] is None:
            raise ReadAgain(f"The node is behind block {known.number}, which it had before.")
        if frame[known.number] != known.hash:
            raise Reorganised(f"Block {known.number} is not {known.hash} any more.")
        if last <= known.number:
            return None
        events = await self._logs(known.number + 1, last)
        if None in frame.values() or await self.hashes(list(frame)) != frame:
            raise ReadAgain(f"The chain moved while blocks up to {last} were read.")
        final_hash = frame[final]
        assert final_hash is not None
        return Reading(
            first=known.number + 1,
            last=last,
            at_head=last == head,
            confirmed=Block(final, final_hash),
            events=events,
        )

    async def _logs(self, first: int, last: int) -> list[Event]:
        """Asks for fewer blocks at once wherever the node finds a range too large."""
        events: list[Event] = []
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
            self._span = min(2 * self._span, LOG_RANGE)
        return sorted(events, key=lambda event: (event.block_number, event.log_index))

    async def _logs_at_once(self, first: int, last: int) -> list[Event]:
        found = await self.web3.eth.get_logs(
            {
                "address": self.address,
                "fromBlock": first,
                "toBlock": last,
                "topics": [list(self._decoders)],
            }
        )
        return [self._decoded(entry) for entry in found if not entry.get("removed")]

    def _decoded(self, entry: Any) -> Event:
        try:
            decoded = self._decoders[HexBytes(entry["topics"][0])].process_log(entry)
        except (Web3Exception, KeyError, IndexError) as error:
            raise ChainError(
                f"The node tells of an event that the escrow has not: {error}"
            ) from error
        return Event(
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


class BoundedProvider(AsyncHTTPProvider):
    """An HTTP endpoint whose answers are bounded in time and size: it is not ours."""

    def __init__(self, url: str) -> None:
        super().__init__(url, request_kwargs={"timeout": ClientTimeout(total=ANSWER_TIME)})
        self._url = URI(url)

    async def _make_request(self, method: RPCEndpoint, request_data: bytes) -> bytes:
        sessions = self._request_session_manager
        response = await sessions.async_get_response_from_post_request(
            self._url, data=request_data, **self.get_request_kwargs()
        )
        async with response:
            response.raise_for_status()
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > ANSWER_LIMIT:
                    raise AnswerTooLarge(f"More than {ANSWER_LIMIT} bytes for one {method}.")
        return bytes(body)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return HexBytes(value).to_0x_hex()
    return str(value).lower()
