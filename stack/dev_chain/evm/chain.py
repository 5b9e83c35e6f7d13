"""The chain itself: blocks and their state, by py-evm."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eth.abc import BlockAPI, BlockHeaderAPI, ReceiptAPI, SignedTransactionAPI, StateAPI
from eth.chains.base import Chain
from eth.constants import POST_MERGE_MIX_HASH, POST_MERGE_NONCE, ZERO_ADDRESS
from eth.db import get_db_backend
from eth.typing import AccountDetails
from eth.vm.forks.prague import PragueVM
from eth_typing import Address, BlockNumber
from eth_utils.exceptions import ValidationError

from stack.dev_chain import accounts
from stack.dev_chain.errors import RpcError
from stack.dev_chain.evm.limited_state import LimitedState
from stack.dev_chain.params import BlockId

CHAIN_ID = 31337
"""EIP-155 id that development chains share, and that wallets know as such."""

GAS_LIMIT = 30_000_000
"""Gas of a block."""

EXTRA_DATA = b"Far Mesh".ljust(278, b"\0")
"""As long as on BSC, whose validators sign there: a client that insists on Ethereum's 32 bytes
fails here as it would there."""


@dataclass(frozen=True, slots=True)
class MinedBlock:
    """A block, and what its transactions did."""

    block: BlockAPI
    receipts: tuple[ReceiptAPI, ...]

    @property
    def header(self) -> BlockHeaderAPI:
        return self.block.header


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mined transaction is."""

    mined: MinedBlock
    index: int

    @property
    def transaction(self) -> SignedTransactionAPI:
        return self.mined.block.transactions[self.index]

    @property
    def receipt(self) -> ReceiptAPI:
        return self.mined.receipts[self.index]


class DevelopmentChain:
    """Blocks from the first to the head. Not safe for threads."""

    def __init__(self) -> None:
        vm = PragueVM.configure(extra_data_max_bytes=len(EXTRA_DATA), _state_class=LimitedState)
        configured = Chain.configure(vm_configuration=((0, vm),), chain_id=CHAIN_ID)
        rich: AccountDetails = {
            "balance": accounts.BALANCE,
            "nonce": 0,
            "code": b"",
            "storage": {},
        }
        owners = (accounts.account(index) for index in range(accounts.COUNT))
        self._evm = configured.from_genesis(
            get_db_backend(),
            {
                "coinbase": ZERO_ADDRESS,
                "difficulty": 0,
                "extra_data": EXTRA_DATA,
                "gas_limit": GAS_LIMIT,
                "mix_hash": POST_MERGE_MIX_HASH,
                "nonce": POST_MERGE_NONCE,
                "timestamp": int(time.time()),
            },
            {Address(bytes.fromhex(owner.address[2:])): rich for owner in owners},
        )
        first = self._evm.get_block_by_header(self._evm.get_canonical_head())
        self._blocks: list[MinedBlock] = []
        self._numbers: dict[bytes, int] = {}
        self._places: dict[bytes, Place] = {}
        self._append(MinedBlock(first, ()))
        self._clock_offset = 0
        self._next_timestamp: int | None = None

    @property
    def head(self) -> MinedBlock:
        return self._blocks[-1]

    @property
    def height(self) -> int:
        """Number of the newest block."""
        return len(self._blocks) - 1

    def block(self, wanted: BlockId) -> MinedBlock | None:
        """A block that is mined, or none. What is pending is the head: nothing waits."""
        if wanted.hash is not None:
            number = self._numbers.get(wanted.hash)
        elif wanted.number is not None:
            number = wanted.number
        else:
            number = 0 if wanted.tag == "earliest" else self.height
        return None if number is None or number > self.height else self._blocks[number]

    def blocks(self, first: int, last: int) -> Iterator[MinedBlock]:
        """Blocks of these numbers, as far as there are any."""
        yield from self._blocks[first : last + 1]

    def place(self, transaction_hash: bytes) -> Place | None:
        """Where a transaction was mined."""
        return self._places.get(transaction_hash)

    def state(self, wanted: BlockId) -> StateAPI:
        """The state after a block, to be read, and to be thrown away after a call that writes.

        Raises:
            RpcError: no such block.
        """
        mined = self.block(wanted)
        if mined is None:
            raise RpcError("header not found")
        return self._evm.get_vm(mined.header).state

    def next_header(self) -> BlockHeaderAPI:
        """The header of the next block, as it would begin now."""
        parent = self.head.header
        timestamp = self._next_timestamp or int(time.time()) + self._clock_offset
        vm = self._evm.get_vm_class_for_block_number(BlockNumber(self.height + 1))
        header = vm.create_header_from_parent(
            parent,
            coinbase=ZERO_ADDRESS,
            extra_data=EXTRA_DATA,
            gas_limit=GAS_LIMIT,
            timestamp=max(timestamp, parent.timestamp + 1),
        )
        # What PREVRANDAO returns; and no block is the same as one of a branch that was left.
        return header.copy(mix_hash=secrets.token_bytes(32))

    def mine(self, *transactions: SignedTransactionAPI) -> MinedBlock:
        """The next block, with these transactions.

        Raises:
            RpcError: one of them is invalid; then there is no block.
        """
        header = self.next_header()
        vm = self._evm.get_vm(header)
        try:
            filled, receipts, _ = vm.apply_all_transactions(transactions, header)
        except ValidationError as error:
            raise RpcError(str(error)) from error
        block = vm.set_block_transactions_and_withdrawals(
            vm.get_block(), filled, transactions, receipts
        )
        mined = MinedBlock(vm.mine_block(block).block, tuple(receipts))
        self._evm.chaindb.persist_header(mined.header)
        self._append(mined)
        self._next_timestamp = None
        return mined

    def truncate(self, height: int) -> None:
        """Forget all blocks above this number."""
        for mined in self._blocks[height + 1 :]:
            del self._numbers[mined.block.hash]
            for transaction in mined.block.transactions:
                del self._places[transaction.hash]
        del self._blocks[height + 1 :]

    def increase_time(self, seconds: int) -> int:
        """Let the chain's clock run ahead of ours by so many seconds more; returns by how many."""
        self._clock_offset += seconds
        return self._clock_offset

    def set_next_timestamp(self, timestamp: int) -> None:
        """Give the next block this time, and let the clock go on from there.

        Raises:
            RpcError: the head is not older.
        """
        if timestamp <= self.head.header.timestamp:
            raise RpcError(
                f"Timestamp error: {timestamp} is lower than or equal to previous block's timestamp"
            )
        self._next_timestamp = timestamp
        self._clock_offset = timestamp - int(time.time())

    def decode(self, raw: bytes) -> SignedTransactionAPI:
        """A transaction from its bytes (EIP-2718). Raises whatever py-evm raises for others."""
        return (
            self._evm.get_vm_class_for_block_number(BlockNumber(0))
            .get_transaction_builder()
            .decode(raw)
        )

    def _append(self, mined: MinedBlock) -> None:
        self._numbers[mined.block.hash] = len(self._blocks)
        self._blocks.append(mined)
        self._places |= {
            transaction.hash: Place(mined, index)
            for index, transaction in enumerate(mined.block.transactions)
        }


def base_fee(header: BlockHeaderAPI) -> int:
    """Wei for a unit of gas that the block burns (EIP-1559)."""
    fee: Any = header.base_fee_per_gas
    return int(fee)


def logs_before(receipts: Sequence[ReceiptAPI], index: int) -> int:
    """How many logs a block's transactions before this one wrote."""
    return sum(len(receipt.logs) for receipt in receipts[:index])
