"""The JSON-RPC methods of the development chain, by name."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from eth_hash.auto import keccak
from eth_typing import Address
from eth_utils.hexadecimal import encode_hex

from stack.dev_chain import formats, logs, params, wallet
from stack.dev_chain.errors import InvalidParams
from stack.dev_chain.evm import execution
from stack.dev_chain.evm.chain import CHAIN_ID, DevelopmentChain, Place
from stack.dev_chain.evm.pool import Pool
from stack.dev_chain.fee_history import fee_history
from stack.dev_chain.params import LATEST, BlockId, Parser, TransactionRequest


@dataclass(frozen=True, slots=True)
class Method:
    """A method: what it runs, and its parameters."""

    run: Callable[..., Any]
    required: tuple[Parser, ...] = ()
    optional: tuple[Parser, ...] = ()

    def __call__(self, given: list[Any]) -> Any:
        """
        Raises:
            RpcError: the parameters do not fit, or the chain refuses.
        """
        parsers = self.required + self.optional
        if len(given) > len(parsers):
            raise InvalidParams(f"too many arguments, want at most {len(parsers)}")
        values = []
        for index, parser in enumerate(parsers):
            value = given[index] if index < len(given) else None
            if value is None and index < len(self.required):
                raise InvalidParams(f"missing value for required argument {index}")
            try:
                values.append(None if value is None else parser(value))
            except (ValueError, TypeError) as error:
                raise InvalidParams(f"invalid argument {index}: {error}") from None
        return self.run(*values)


def methods(chain: DevelopmentChain) -> Mapping[str, Method]:
    """All methods, on one chain."""
    pool = Pool(chain)
    reads = _node() | _state(chain) | _blocks(chain) | _transactions(chain, pool)
    return reads | _filters(chain) | _sending(chain, pool) | _development(chain, pool)


def _node() -> dict[str, Method]:
    client = f"far-mesh/py-evm/{version('py-evm')}/python{platform.python_version()}"
    return {
        "web3_clientVersion": Method(lambda: client),
        "web3_sha3": Method(lambda value: encode_hex(keccak(value)), (params.data,)),
        "net_version": Method(lambda: str(CHAIN_ID)),
        "net_listening": Method(lambda: True),
        "net_peerCount": Method(lambda: "0x0"),
        "eth_chainId": Method(lambda: hex(CHAIN_ID)),
        "eth_syncing": Method(lambda: False),
        "eth_accounts": Method(wallet.addresses),
        "eth_maxPriorityFeePerGas": Method(lambda: hex(wallet.TIP)),
        "eth_blobBaseFee": Method(lambda: "0x1"),
    }


def _state(chain: DevelopmentChain) -> dict[str, Method]:
    def balance(address: Address, at: BlockId | None) -> str:
        return hex(chain.state(at or LATEST).get_balance(address))

    def nonce(address: Address, at: BlockId | None) -> str:
        return hex(chain.state(at or LATEST).get_nonce(address))

    def code(address: Address, at: BlockId | None) -> str:
        return encode_hex(chain.state(at or LATEST).get_code(address))

    def storage(address: Address, slot: int, at: BlockId | None) -> str:
        return encode_hex(chain.state(at or LATEST).get_storage(address, slot).to_bytes(32, "big"))

    def call(request: TransactionRequest, at: BlockId | None) -> str:
        return encode_hex(execution.call(chain.state(at or LATEST), request))

    def estimate_gas(request: TransactionRequest, at: BlockId | None) -> str:
        return hex(execution.estimate_gas(chain.state(at or LATEST), request))

    at = (params.block_id,)
    return {
        "eth_getBalance": Method(balance, (params.address,), at),
        "eth_getTransactionCount": Method(nonce, (params.address,), at),
        "eth_getCode": Method(code, (params.address,), at),
        "eth_getStorageAt": Method(storage, (params.address, params.quantity), at),
        "eth_call": Method(call, (params.transaction_request,), at),
        "eth_estimateGas": Method(estimate_gas, (params.transaction_request,), at),
    }


def _blocks(chain: DevelopmentChain) -> dict[str, Method]:
    def block(wanted: BlockId, full: bool | None) -> Any:
        if wanted.tag == "pending":
            return formats.pending_block(chain.next_header())
        mined = chain.block(wanted)
        return None if mined is None else formats.block(mined, bool(full))

    def transaction_count(wanted: BlockId) -> Any:
        mined = chain.block(wanted)
        return None if mined is None else hex(len(mined.block.transactions))

    def uncle_count(wanted: BlockId) -> Any:
        return None if chain.block(wanted) is None else "0x0"

    def receipts(wanted: BlockId) -> Any:
        mined = chain.block(wanted)
        if mined is None:
            return None
        return [formats.receipt(Place(mined, index)) for index in range(len(mined.receipts))]

    return {
        "eth_blockNumber": Method(lambda: hex(chain.height)),
        "eth_gasPrice": Method(lambda: hex(wallet.suggested_fee(chain))),
        "eth_feeHistory": Method(
            partial(fee_history, chain), (params.uint64, params.block_id), (params.percentiles,)
        ),
        "eth_getBlockByNumber": Method(block, (params.block_id,), (params.flag,)),
        "eth_getBlockByHash": Method(block, (params.block_hash,), (params.flag,)),
        "eth_getBlockTransactionCountByNumber": Method(transaction_count, (params.block_id,)),
        "eth_getBlockTransactionCountByHash": Method(transaction_count, (params.block_hash,)),
        "eth_getUncleCountByBlockNumber": Method(uncle_count, (params.block_id,)),
        "eth_getUncleCountByBlockHash": Method(uncle_count, (params.block_hash,)),
        "eth_getBlockReceipts": Method(receipts, (params.block_id,)),
    }


def _transactions(chain: DevelopmentChain, pool: Pool) -> dict[str, Method]:
    def by_hash(wanted: bytes) -> Any:
        place = chain.place(wanted)
        if place is not None:
            return formats.mined_transaction(place)
        waiting = pool.waiting(wanted)
        return None if waiting is None else formats.waiting_transaction(waiting)

    def by_index(wanted: BlockId, index: int) -> Any:
        mined = chain.block(wanted)
        if mined is None or index >= len(mined.receipts):
            return None
        return formats.mined_transaction(Place(mined, index))

    def receipt(wanted: bytes) -> Any:
        place = chain.place(wanted)
        return None if place is None else formats.receipt(place)

    number, index = params.block_id, params.uint64
    return {
        "eth_getTransactionByHash": Method(by_hash, (params.hash32,)),
        "eth_getTransactionByBlockNumberAndIndex": Method(by_index, (number, index)),
        "eth_getTransactionByBlockHashAndIndex": Method(by_index, (params.block_hash, index)),
        "eth_getTransactionReceipt": Method(receipt, (params.hash32,)),
    }


def _filters(chain: DevelopmentChain) -> dict[str, Method]:
    filters = logs.Filters(chain)
    return {
        "eth_getLogs": Method(partial(logs.find, chain), (params.log_filter,)),
        "eth_newFilter": Method(lambda each: hex(filters.new_logs(each)), (params.log_filter,)),
        "eth_newBlockFilter": Method(lambda: hex(filters.new_blocks())),
        "eth_newPendingTransactionFilter": Method(lambda: hex(filters.new_transactions())),
        "eth_getFilterChanges": Method(filters.changes, (params.quantity,)),
        "eth_getFilterLogs": Method(filters.logs, (params.quantity,)),
        "eth_uninstallFilter": Method(filters.remove, (params.quantity,)),
    }


def _sending(chain: DevelopmentChain, pool: Pool) -> dict[str, Method]:
    def send_raw(raw: bytes) -> str:
        return encode_hex(pool.add(raw))

    def send(request: TransactionRequest) -> str:
        return encode_hex(pool.add(wallet.sign_transaction(chain, request)))

    def personal_sign(text: bytes, address: Address, _: Any) -> str:
        return wallet.sign_text(address, text)

    address, data = params.address, params.data
    return {
        "eth_sendRawTransaction": Method(send_raw, (data,)),
        "eth_sendTransaction": Method(send, (params.transaction_request,)),
        "eth_sign": Method(wallet.sign_text, (address, data)),
        "personal_sign": Method(personal_sign, (data, address), (params.anything,)),
        "eth_signTypedData_v4": Method(wallet.sign_typed_data, (address, params.typed_data)),
    }


def _development(chain: DevelopmentChain, pool: Pool) -> dict[str, Method]:
    """What only development chains have, as anvil and Hardhat name it."""
    snapshots: list[int] = []

    def mine(timestamp: int | None) -> str:
        if timestamp is not None:
            chain.set_next_timestamp(timestamp)
        chain.mine()
        return "0x0"

    def snapshot() -> str:
        snapshots.append(chain.height)
        return hex(len(snapshots))

    def revert(number: int) -> bool:
        if not 1 <= number <= len(snapshots):
            return False
        chain.truncate(snapshots[number - 1])
        del snapshots[number - 1 :]
        pool.clear()
        return True

    return {
        "evm_mine": Method(mine, (), (params.uint64,)),
        "evm_snapshot": Method(snapshot),
        "evm_revert": Method(revert, (params.quantity,)),
        "evm_increaseTime": Method(chain.increase_time, (params.uint64,)),
        "evm_setNextBlockTimestamp": Method(chain.set_next_timestamp, (params.uint64,)),
    }
