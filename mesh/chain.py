"""The escrow contract as the platform uses it. All amounts are integer base units."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress, HexStr
from hexbytes import HexBytes
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.exceptions import TransactionNotFound, Web3Exception
from web3.types import Nonce

from mesh.errors import ChainError
from mesh.settings import PaymentsSettings

ARTIFACTS = Path(__file__).parent.parent / "contracts" / "artifacts"

LOG_RANGE = 2000
"""Blocks in one eth_getLogs: what public BSC nodes allow and more."""

SETTLE_GAS_BASE = 200_000
SETTLE_GAS_PER_LINE = 60_000
"""Upper bounds, above what `forge test --gas-report` shows for a line that is written first."""


@dataclass(frozen=True, slots=True)
class DepositEvent:
    """A ``Deposited`` event of the escrow."""

    transaction_hash: str
    log_index: int
    block_number: int
    user: str
    units: int


@dataclass(frozen=True, slots=True)
class SignedSettlement:
    """Bytes ready to send, and the hash under which the chain will know them."""

    raw: bytes
    transaction_hash: str
    nonce: int


def artifact(name: str) -> dict[str, Any]:
    """ABI and creation bytecode of a compiled contract, as committed."""
    found: dict[str, Any] = json.loads((ARTIFACTS / f"{name}.json").read_text())
    return found


def unlock(keyfile: Path, password: str) -> LocalAccount:
    """The account of an encrypted keystore file (Web3 Secret Storage).

    Raises:
        ChainError: no such file, not a keystore, or the wrong password.
    """
    try:
        key = Account.decrypt(json.loads(keyfile.read_text()), password)
    except (OSError, ValueError) as error:
        raise ChainError(f"Cannot unlock the operator's keystore {keyfile}: {error}") from None
    account: LocalAccount = Account.from_key(key)
    return account


class Escrow:
    """One InferenceEscrow contract over one RPC endpoint."""

    def __init__(self, rpc_url: str, address: str) -> None:
        self._web3 = AsyncWeb3(AsyncHTTPProvider(rpc_url))
        self.address: ChecksumAddress = AsyncWeb3.to_checksum_address(address)
        self._contract = self._web3.eth.contract(
            address=self.address, abi=artifact("InferenceEscrow")["abi"]
        )

    @classmethod
    def of(cls, payments: PaymentsSettings) -> "Escrow":
        """The contract that the settings name.

        Raises:
            ChainError: they name none.
        """
        if not payments.escrow_contract:
            raise ChainError("No escrow contract is set (FAR_PAYMENTS__ESCROW_CONTRACT).")
        return cls(payments.rpc_url, payments.escrow_contract)

    async def close(self) -> None:
        await self._web3.provider.disconnect()

    async def head(self) -> int:
        """Number of the newest block."""
        return int(await self._web3.eth.block_number)

    async def deposits(self, first: int, last: int) -> list[DepositEvent]:
        """``Deposited`` events in blocks ``first`` to ``last``, both included."""
        events = await self._contract.events.Deposited().get_logs(from_block=first, to_block=last)
        return [
            DepositEvent(
                transaction_hash=HexBytes(event["transactionHash"]).to_0x_hex(),
                log_index=event["logIndex"],
                block_number=event["blockNumber"],
                user=event["args"]["user"].lower(),
                units=event["args"]["amount"],
            )
            for event in events
        ]

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

    async def batch_settled(self, batch: str) -> bool:
        """Whether the contract has taken this batch."""
        return bool(await self._contract.functions.batchSettled(HexBytes(batch)).call())

    async def next_nonce(self, account: str) -> int:
        """The account's next nonce, after what is mined."""
        return await self._web3.eth.get_transaction_count(AsyncWeb3.to_checksum_address(account))

    async def sign_settlement(
        self,
        signer: LocalAccount,
        *,
        batch: str,
        debits: Mapping[str, int],
        credits: Mapping[str, int],
        fee: int,
        nonce: int,
    ) -> SignedSettlement:
        """A signed ``settle`` transaction; nothing is sent.

        Raises:
            ChainError: the contract would revert it.
        """
        call = self._contract.functions.settle(
            HexBytes(batch), _lines(debits), _lines(credits), fee
        )
        try:
            await call.call({"from": signer.address})
            gas = SETTLE_GAS_BASE + SETTLE_GAS_PER_LINE * (len(debits) + len(credits))
            unsigned = await call.build_transaction(
                {"from": signer.address, "nonce": Nonce(nonce), "gas": gas}
            )
        except Web3Exception as error:
            raise ChainError(f"The contract refuses batch {batch}: {error}") from error
        signed = signer.sign_transaction(unsigned)  # type: ignore[arg-type]
        return SignedSettlement(
            raw=bytes(signed.raw_transaction),
            transaction_hash=signed.hash.to_0x_hex(),
            nonce=nonce,
        )

    async def send(self, raw: bytes) -> None:
        """Hand signed bytes to the network. Sending them twice is the same as once."""
        try:
            await self._web3.eth.send_raw_transaction(HexBytes(raw))
        except (Web3Exception, ValueError) as error:
            message = str(error).lower()
            if "already known" in message or "already imported" in message:
                return
            raise ChainError(f"The network refused a transaction: {error}") from error

    async def mined_in(self, transaction_hash: str) -> int | None:
        """The block of a transaction; none if it is not mined.

        Raises:
            ChainError: it was mined and reverted.
        """
        try:
            receipt = await self._web3.eth.get_transaction_receipt(HexStr(transaction_hash))
        except TransactionNotFound:
            return None
        if receipt["status"] != 1:
            raise ChainError(f"Transaction {transaction_hash} was reverted.")
        return int(receipt["blockNumber"])

    async def _read(self, function: str, wallet: str) -> int:
        address = AsyncWeb3.to_checksum_address(wallet)
        return int(await self._contract.functions[function](address).call())


def _lines(amounts: Mapping[str, int]) -> Sequence[tuple[ChecksumAddress, int]]:
    return [(AsyncWeb3.to_checksum_address(who), units) for who, units in sorted(amounts.items())]
