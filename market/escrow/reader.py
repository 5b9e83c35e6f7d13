"""All that is read of the escrow contract, as of the newest block or of one that is named."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.contract import AsyncContract
from web3.exceptions import BadFunctionCallOutput, Web3Exception
from web3.types import BlockIdentifier

from market.chain.client import ChainClient
from market.chain.errors import ChainError, ChainUnreachable
from market.chain.failover_rpc import FailoverProvider
from market.escrow.artifacts import artifact
from market.settings.payments import PaymentsSettings

MAX_CONCURRENT_CALLS = 16
"""Calls of one reader that wait for an endpoint at one time."""

SETTLER_ROLE = keccak(text="SETTLER_ROLE")
"""As OpenZeppelin's AccessControl names a role."""

Value = TypeVar("Value")


class EscrowReader:
    """Reads one InferenceEscrow. Amounts are integer base units.

    Every view takes a ``block``: a number, or a tag such as ``latest``. Ordinary endpoints know the
    state of the last 128 blocks. Every view raises ChainUnreachable where no endpoint answers, or
    the one that does knows neither the contract nor the block.
    """

    def __init__(self, chain: ChainClient, address: str) -> None:
        self.chain = chain
        self.address: ChecksumAddress = AsyncWeb3.to_checksum_address(address)
        self.contract: AsyncContract = chain.web3.eth.contract(
            address=self.address, abi=artifact("InferenceEscrow")["abi"]
        )
        self._call_limit = asyncio.Semaphore(MAX_CONCURRENT_CALLS)

    @classmethod
    @asynccontextmanager
    async def from_settings(cls, payments: PaymentsSettings) -> AsyncIterator["EscrowReader"]:
        """A reader of the contract that the settings name, closed at the end.

        Raises:
            ChainError: the settings name no contract.
        """
        address = escrow_address(payments)
        reader = cls(ChainClient(FailoverProvider.from_settings(payments)), address)
        try:
            yield reader
        finally:
            await reader.close()

    async def close(self) -> None:
        """Close the connections to the endpoints."""
        await self.chain.close()

    async def deposit_of(self, wallet: str, block: BlockIdentifier = "latest") -> int:
        """What a user has prepaid and not been debited."""
        return int(await self._call("depositOf", _address(wallet), block=block))

    async def deposits(
        self, wallets: Collection[str], block: BlockIdentifier = "latest"
    ) -> dict[str, int]:
        """`deposit_of` for each of the wallets."""
        return await _by_key(wallets, lambda wallet: self.deposit_of(wallet, block))

    async def earned_of(self, wallet: str, block: BlockIdentifier = "latest") -> int:
        """What an account was ever credited; claiming does not lower it."""
        return int(await self._call("earnedOf", _address(wallet), block=block))

    async def earnings(
        self, wallets: Collection[str], block: BlockIdentifier = "latest"
    ) -> dict[str, int]:
        """`earned_of` for each of the wallets."""
        return await _by_key(wallets, lambda wallet: self.earned_of(wallet, block))

    async def credit_of(self, wallet: str, block: BlockIdentifier = "latest") -> int:
        """What an account was credited and has not claimed."""
        return int(await self._call("creditOf", _address(wallet), block=block))

    async def shortfalls(
        self, debits: Mapping[str, int], block: BlockIdentifier = "latest"
    ) -> dict[str, str]:
        """The users from whom their part of ``debits`` cannot be taken.

        Each with the name of the contract's error, as `SettlementRefused.reason` has it:
        ``InsufficientDeposit`` or ``CapExceeded``.
        """

        async def lacking(user: str) -> str | None:
            if await self.deposit_of(user, block) < debits[user]:
                return "InsufficientDeposit"
            maximum, debited = await self._call("capOf", _address(user), block=block)
            return "CapExceeded" if maximum - debited < debits[user] else None

        reasons = await _by_key(debits, lacking)
        return {user: reason for user, reason in reasons.items() if reason is not None}

    async def total_deposits(self, block: BlockIdentifier = "latest") -> int:
        """The sum of all users' deposits."""
        return int(await self._call("totalDeposits", block=block))

    async def fee_recipient(self, block: BlockIdentifier = "latest") -> str:
        """The account that the platform's fee is credited to, in lower case."""
        return str(await self._call("feeRecipient", block=block)).lower()

    async def last_settled_at(self, block: BlockIdentifier = "latest") -> int:
        """When the newest batch was settled, or else when the contract was made, in Unix
        seconds."""
        return int(await self._call("lastSettledAt", block=block))

    async def dormancy(self, block: BlockIdentifier = "latest") -> int:
        """Seconds without a batch after which the contract waives all delays."""
        return int(await self._call("DORMANCY", block=block))

    async def is_settler(self, account: str, block: BlockIdentifier = "latest") -> bool:
        """Whether an account has the settler's role."""
        return bool(await self._call("hasRole", SETTLER_ROLE, _address(account), block=block))

    async def usage_root_of(self, batch: str, block: BlockIdentifier = "latest") -> str | None:
        """The usage root under which a batch was settled; none if it was not settled."""
        root = HexBytes(await self._call("usageRootOf", HexBytes(batch), block=block))
        return root.to_0x_hex() if any(root) else None

    async def agreed_usage_root_of(self, batch: str, block: int) -> str | None:
        """`usage_root_of` as two endpoints say that have the same block there: what a payment may
        be booked on, or taken back.

        Raises:
            ChainMoved: they do not say the same yet.
        """

        async def read(chain: ChainClient) -> tuple[str, str | None]:
            [header] = await chain.headers(block, block)
            root = await EscrowReader(chain, self.address).usage_root_of(batch, block)
            return header.hash, root

        return (await self.chain.agreed(read))[1]

    async def settled_batches(
        self, batches: Collection[str], block: BlockIdentifier = "latest"
    ) -> set[str]:
        """Those of the batches that were settled."""
        roots = await _by_key(batches, lambda batch: self.usage_root_of(batch, block))
        return {batch for batch, root in roots.items() if root is not None}

    async def _call(self, function: str, *arguments: object, block: BlockIdentifier) -> Any:
        call = self.contract.functions[function](*arguments)
        try:
            async with self._call_limit:
                return await call.call(block_identifier=block)
        except BadFunctionCallOutput:
            raise ChainUnreachable(
                f"There is no contract at {self.address}, as of block {block!s}: is that "
                "endpoint on another chain?"
            ) from None
        except (Web3Exception, ValueError, OSError) as error:
            raise ChainUnreachable(
                f"The contract cannot be read at block {block!s}: {type(error).__name__}: {error}"
            ) from error


def escrow_address(payments: PaymentsSettings) -> str:
    """Where the contract is that the settings name.

    Raises:
        ChainError: the settings name no contract.
    """
    if not payments.escrow_contract:
        raise ChainError("No escrow contract is set (FAR_PAYMENTS__ESCROW_CONTRACT).")
    return payments.escrow_contract


def _address(wallet: str) -> ChecksumAddress:
    return AsyncWeb3.to_checksum_address(wallet)


async def _by_key(
    keys: Collection[str], read: Callable[[str], Awaitable[Value]]
) -> dict[str, Value]:
    """What is read for each key, all of it at once."""
    values = await asyncio.gather(*map(read, keys))
    return dict(zip(keys, values, strict=True))
