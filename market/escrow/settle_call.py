"""A batch as a call of the contract's ``settle``: encoded, simulated, estimated, and read back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.contract import AsyncContract
from web3.exceptions import Web3Exception
from web3.logs import DISCARD

from market.chain.client import TransactionReceipt
from market.escrow.batch_lines import pack_lines
from market.escrow.reverts import decode_refusal

GAS_MARGIN_DIVISOR = 4
"""A quarter more gas than estimated: a slot that is written now may be a new one by then."""


class BatchTotals(NamedTuple):
    """What a batch moves all together, in base units."""

    debited: int
    credited: int
    fee: int


@dataclass(frozen=True, slots=True)
class SettlementBatch:
    """What each user pays and each provider gets: the arguments of one ``settle``.

    ``id`` and ``usage_root`` are 32 bytes as 0x-prefixed hex; amounts are base units by wallet.
    """

    id: str
    debits: Mapping[str, int]
    credits: Mapping[str, int]
    fee: int
    usage_root: str

    @property
    def totals(self) -> BatchTotals:
        return BatchTotals(sum(self.debits.values()), sum(self.credits.values()), self.fee)


class SettleCall:
    """The call that settles one batch on one contract."""

    def __init__(self, contract: AsyncContract, batch: SettlementBatch) -> None:
        self.batch = batch
        self._contract = contract
        self._call = contract.functions.settle(
            HexBytes(batch.id),
            pack_lines(batch.debits),
            pack_lines(batch.credits),
            batch.fee,
            HexBytes(batch.usage_root),
        )

    def data(self) -> bytes:
        """The data of a transaction that settles the batch."""
        return bytes(HexBytes(self._contract.encode_abi("settle", self._call.args)))

    async def simulate(self, settler: str) -> None:
        """Try the call on the newest block; nothing is sent.

        Raises:
            SettlementRefused: the contract would revert it.
        """
        try:
            await self._call.call({"from": AsyncWeb3.to_checksum_address(settler)})
        except Web3Exception as error:
            raise decode_refusal(error) from error

    async def estimate_gas(self, settler: str) -> int:
        """A gas limit for the call, with a margin.

        Raises:
            SettlementRefused: the contract would revert it.
        """
        sender = AsyncWeb3.to_checksum_address(settler)
        try:
            gas = int(await self._call.estimate_gas({"from": sender}))
        except Web3Exception as error:
            raise decode_refusal(error) from error
        return gas + gas // GAS_MARGIN_DIVISOR

    def settled_totals(self, receipt: TransactionReceipt) -> BatchTotals | None:
        """The totals that the receipt's ``BatchSettled`` event has; none if it has no such event
        of this batch."""
        settled = self._contract.events.BatchSettled()
        for event in settled.process_receipt(receipt.raw, errors=DISCARD):
            arguments = event["args"]
            if HexBytes(arguments["batchId"]) == HexBytes(self.batch.id):
                return BatchTotals(arguments["debited"], arguments["credited"], arguments["fee"])
        return None
