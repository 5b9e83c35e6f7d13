"""What the escrow contract said at a block: the chain's side of the ledger's check."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from hexbytes import HexBytes
from web3 import AsyncWeb3
from web3.exceptions import Web3Exception

from market.chain.errors import ChainError
from market.chain.failover_rpc import FailoverProvider
from market.escrow.artifacts import artifact
from market.settings.payments import PaymentsSettings

AT_ONCE = 16
"""Questions that the endpoint gets at one time."""


class EscrowView:
    """Reads one InferenceEscrow at a block that the caller names; amounts are base units.

    Every method raises ChainError where the endpoint does not answer, or no longer knows the
    state of that block: ordinary nodes keep that of the last 128.
    """

    def __init__(self, web3: AsyncWeb3[Any], address: str) -> None:
        self.address = address
        self._contract = web3.eth.contract(
            address=AsyncWeb3.to_checksum_address(address), abi=artifact("InferenceEscrow")["abi"]
        )

    @classmethod
    @asynccontextmanager
    async def of(cls, payments: PaymentsSettings) -> AsyncIterator["EscrowView | None"]:
        """The contract that the settings name; none if they name none."""
        if not payments.escrow_contract:
            yield None
            return
        web3 = AsyncWeb3(FailoverProvider.of(payments))
        try:
            yield cls(web3, payments.escrow_contract)
        finally:
            await web3.provider.disconnect()

    async def deposits(self, wallets: Collection[str], *, block: int) -> dict[str, int]:
        """What is left of each wallet's prepaid money."""
        return await self._by_wallet("depositOf", wallets, block)

    async def earned(self, wallets: Collection[str], *, block: int) -> dict[str, int]:
        """What each wallet was ever credited."""
        return await self._by_wallet("earnedOf", wallets, block)

    async def total_deposits(self, *, block: int) -> int:
        """The sum of all wallets' prepaid money."""
        return int(await self._read("totalDeposits", block))

    async def fee_recipient(self, *, block: int) -> str:
        """The wallet that the platform's fee is credited to."""
        return str(await self._read("feeRecipient", block)).lower()

    async def settled(self, batches: Collection[str], *, block: int) -> set[str]:
        """Those of the batches that the contract had settled."""
        answers = await _all(
            batches, lambda batch: self._read("batchSettled", block, HexBytes(batch))
        )
        return {batch for batch, answer in zip(batches, answers, strict=True) if answer}

    async def _by_wallet(
        self, function: str, wallets: Collection[str], block: int
    ) -> dict[str, int]:
        answers = await _all(
            wallets,
            lambda wallet: self._read(function, block, AsyncWeb3.to_checksum_address(wallet)),
        )
        return {wallet: int(answer) for wallet, answer in zip(wallets, answers, strict=True)}

    async def _read(self, function: str, block: int, *arguments: object) -> Any:
        try:
            call = self._contract.functions[function](*arguments)
            return await call.call(block_identifier=block)
        except (Web3Exception, ValueError, OSError) as error:
            raise ChainError(
                f"The contract cannot be read at block {block}: {type(error).__name__}: {error}"
            ) from error


async def _all(items: Collection[str], ask: Callable[[str], Awaitable[Any]]) -> list[Any]:
    """The answers in the order of the items, some questions at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(item: str) -> Any:
        async with turn:
            return await ask(item)

    return list(await asyncio.gather(*map(one, items)))
