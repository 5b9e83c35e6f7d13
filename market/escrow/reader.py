"""The escrow contract as the platform uses it. All amounts are integer base units."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.exceptions import BadFunctionCallOutput, Web3Exception
from web3.logs import DISCARD
from web3.types import BlockIdentifier

from market.chain.client import ChainClient, Receipt
from market.chain.errors import ChainError, ChainUnreachable
from market.chain.failover_rpc import FailoverProvider
from market.escrow.artifacts import artifact
from market.escrow.batch_lines import pack_lines
from market.escrow.reverts import Reverts
from market.settings.payments import PaymentsSettings

GAS_MARGIN = 4
"""A quarter more gas than estimated: a slot that is written now may be a new one by then."""

MAX_CONCURRENT_CALLS = 16
"""Questions that the endpoint gets at one time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The arguments of one ``settle``: what each user pays and each provider gets.

    ``id`` and ``usage_root`` are 32 bytes as 0x-prefixed hex.
    """

    id: str
    debits: Mapping[str, int]
    credits: Mapping[str, int]
    fee: int
    usage_root: str

    @property
    def debited(self) -> int:
        return sum(self.debits.values())


class EscrowReader:
    """One InferenceEscrow contract."""

    def __init__(self, network: ChainClient, address: str) -> None:
        self.network = network
        self.address: ChecksumAddress = AsyncWeb3.to_checksum_address(address)
        abi = artifact("InferenceEscrow")["abi"]
        self._contract = network.web3.eth.contract(address=self.address, abi=abi)
        self._reverts = Reverts(abi)

    @classmethod
    def of(cls, payments: PaymentsSettings) -> "EscrowReader":
        """The contract that the settings name.

        Raises:
            ChainError: they name none.
        """
        if not payments.escrow_contract:
            raise ChainError("No escrow contract is set (FAR_PAYMENTS__ESCROW_CONTRACT).")
        return cls(ChainClient(FailoverProvider.of(payments)), payments.escrow_contract)

    async def close(self) -> None:
        await self.network.close()

    async def deposit_of(self, wallet: str) -> int:
        """What a user has prepaid and not been debited."""
        return await self._read("depositOf", wallet)

    async def credit_of(self, wallet: str) -> int:
        """What an account may claim now."""
        return await self._read("creditOf", wallet)

    async def earned_of(self, wallet: str) -> int:
        """What an account was ever credited; claiming does not lower it."""
        return await self._read("earnedOf", wallet)

    async def fee_recipient(self) -> str:
        """The account that the platform's fee is credited to."""
        return str(await self._contract.functions.feeRecipient().call()).lower()

    async def last_settled_at(self) -> int:
        """When the newest batch was settled, in Unix seconds; or when the contract was made."""
        return int(await self._contract.functions.lastSettledAt().call())

    async def dormancy(self) -> int:
        """Seconds without a batch after which the contract waives all delays."""
        return int(await self._contract.functions.DORMANCY().call())

    async def may_settle(self, account: str, block: BlockIdentifier = "latest") -> bool:
        """Whether an account has the settler's role, as of ``block``."""
        role = keccak(text="SETTLER_ROLE")
        address = AsyncWeb3.to_checksum_address(account)
        call = self._contract.functions.hasRole(role, address)
        return bool(await call.call(block_identifier=block))

    async def short(self, debits: Mapping[str, int]) -> dict[str, str]:
        """The users from whom so much cannot be debited, and the error that names what they lack,
        as `SettlementRefused.reason` has it."""
        turn = asyncio.Semaphore(MAX_CONCURRENT_CALLS)

        async def lacks(user: str, units: int) -> str | None:
            async with turn:
                if await self.deposit_of(user) < units:
                    return "InsufficientDeposit"
                address = AsyncWeb3.to_checksum_address(user)
                maximum, debited = await self._contract.functions.capOf(address).call()
                return "CapExceeded" if maximum - debited < units else None

        answers = await asyncio.gather(*(lacks(user, units) for user, units in debits.items()))
        found = zip(debits, answers, strict=True)
        return {user: reason for user, reason in found if reason is not None}

    async def settled_root(self, batch: str, block: BlockIdentifier = "latest") -> str | None:
        """The usage root under which the contract has taken a batch, as of ``block``; none if it
        has not.

        Raises:
            ChainUnreachable: the endpoint has no such contract, and so does not know.
        """
        call = self._contract.functions.usageRootOf(HexBytes(batch))
        try:
            root = HexBytes(await call.call(block_identifier=block))
        except BadFunctionCallOutput:
            raise ChainUnreachable(
                f"There is no contract at {self.address}, as of block {block!s}: is that "
                "endpoint on another chain?"
            ) from None
        return root.to_0x_hex() if any(root) else None

    async def batch_settled(self, batch: str) -> bool:
        """Whether the contract has taken this batch."""
        return await self.settled_root(batch) is not None

    def settle_data(self, batch: Batch) -> bytes:
        """The data of a transaction that settles the batch."""
        return bytes(HexBytes(self._contract.encode_abi("settle", self._arguments(batch))))

    async def simulate(self, settler: str, batch: Batch) -> None:
        """Try a batch on the newest block; nothing is sent.

        Raises:
            SettlementRefused: the contract would revert it.
        """
        call = self._contract.functions.settle(*self._arguments(batch))
        try:
            await call.call({"from": AsyncWeb3.to_checksum_address(settler)})
        except Web3Exception as error:
            raise self._reverts.read(error) from error

    async def gas_for(self, settler: str, batch: Batch) -> int:
        """A gas limit for the batch, with a margin.

        Raises:
            SettlementRefused: the contract would revert it.
        """
        call = self._contract.functions.settle(*self._arguments(batch))
        try:
            gas = int(await call.estimate_gas({"from": AsyncWeb3.to_checksum_address(settler)}))
        except Web3Exception as error:
            raise self._reverts.read(error) from error
        return gas + gas // GAS_MARGIN

    def totals(self, receipt: Receipt, batch: str) -> tuple[int, int, int] | None:
        """Debited, credited and fee that a receipt's ``BatchSettled`` tells; none without one."""
        for event in self._contract.events.BatchSettled().process_receipt(
            receipt.raw, errors=DISCARD
        ):
            arguments = event["args"]
            if HexBytes(arguments["batchId"]) == HexBytes(batch):
                return arguments["debited"], arguments["credited"], arguments["fee"]
        return None

    def _arguments(self, batch: Batch) -> tuple[Any, ...]:
        return (
            HexBytes(batch.id),
            pack_lines(batch.debits),
            pack_lines(batch.credits),
            batch.fee,
            HexBytes(batch.usage_root),
        )

    async def _read(self, function: str, wallet: str) -> int:
        address = AsyncWeb3.to_checksum_address(wallet)
        return int(await self._contract.functions[function](address).call())
