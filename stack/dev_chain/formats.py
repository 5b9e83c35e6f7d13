"""Blocks, transactions, receipts and logs as JSON-RPC writes them (Ethereum's execution-apis)."""

from typing import Any

import rlp
from eth.abc import BlockHeaderAPI, SignedTransactionAPI
from eth_hash.auto import keccak
from eth_utils.hexadecimal import encode_hex

from stack.dev_chain.evm.chain import MinedBlock, Place, base_fee, logs_before
from stack.dev_chain.evm.pool import fees

Json = dict[str, Any]


def block(mined: MinedBlock, full: bool) -> Json:
    """A block; ``full`` with its transactions, otherwise with their hashes."""
    transactions = [
        mined_transaction(Place(mined, index)) if full else encode_hex(each.hash)
        for index, each in enumerate(mined.block.transactions)
    ]
    return header(mined.header) | {
        "size": hex(len(rlp.encode(mined.block))),
        "transactions": transactions,
        "uncles": [],
        "withdrawals": [],
    }


def pending_block(next_header: BlockHeaderAPI) -> Json:
    """The block that is mined next, as geth shows it: without what only mining gives it."""
    unknown = dict.fromkeys(("hash", "nonce", "miner", "logsBloom"))
    return (
        header(next_header)
        | unknown
        | {
            "size": hex(len(rlp.encode(next_header))),
            "transactions": [],
            "uncles": [],
            "withdrawals": [],
        }
    )


def header(given: BlockHeaderAPI) -> Json:
    fields: Any = given
    return {
        "number": hex(fields.block_number),
        "hash": encode_hex(fields.hash),
        "parentHash": encode_hex(fields.parent_hash),
        "nonce": encode_hex(fields.nonce),
        "sha3Uncles": encode_hex(fields.uncles_hash),
        "logsBloom": encode_hex(fields.bloom.to_bytes(256, "big")),
        "transactionsRoot": encode_hex(fields.transaction_root),
        "stateRoot": encode_hex(fields.state_root),
        "receiptsRoot": encode_hex(fields.receipt_root),
        "miner": encode_hex(fields.coinbase),
        "difficulty": hex(fields.difficulty),
        "extraData": encode_hex(fields.extra_data),
        "gasLimit": hex(fields.gas_limit),
        "gasUsed": hex(fields.gas_used),
        "timestamp": hex(fields.timestamp),
        "mixHash": encode_hex(fields.mix_hash),
        "baseFeePerGas": hex(fields.base_fee_per_gas),
        "withdrawalsRoot": encode_hex(fields.withdrawals_root),
        "blobGasUsed": hex(fields.blob_gas_used),
        "excessBlobGas": hex(fields.excess_blob_gas),
        "parentBeaconBlockRoot": encode_hex(fields.parent_beacon_block_root),
        "requestsHash": encode_hex(fields.requests_hash),
    }


def mined_transaction(place: Place) -> Json:
    return waiting_transaction(place.transaction) | {
        "blockHash": encode_hex(place.mined.block.hash),
        "blockNumber": hex(place.mined.header.block_number),
        "transactionIndex": hex(place.index),
        "gasPrice": hex(effective_gas_price(place.transaction, place.mined.header)),
    }


def waiting_transaction(transaction: SignedTransactionAPI) -> Json:
    """A transaction that is in no block."""
    kind = transaction.type_id or 0
    fee, tip = fees(transaction)
    fields: Json = {
        "type": hex(kind),
        "hash": encode_hex(transaction.hash),
        "nonce": hex(transaction.nonce),
        "blockHash": None,
        "blockNumber": None,
        "transactionIndex": None,
        "from": encode_hex(transaction.sender),
        "to": encode_hex(transaction.to) if transaction.to else None,
        "value": hex(transaction.value),
        "gas": hex(transaction.gas),
        "gasPrice": hex(fee),
        "input": encode_hex(transaction.data),
        "chainId": hex(transaction.chain_id or 0),
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "v": hex(transaction.y_parity if kind else getattr(transaction, "v")),  # noqa: B009
    }
    if kind >= 1:
        fields["yParity"] = hex(transaction.y_parity)
        fields["accessList"] = [
            {
                "address": encode_hex(address),
                "storageKeys": [encode_hex(key.to_bytes(32, "big")) for key in keys],
            }
            for address, keys in transaction.access_list
        ]
    if kind >= 2:
        fields |= {"maxFeePerGas": hex(fee), "maxPriorityFeePerGas": hex(tip)}
    if kind >= 4:
        fields["authorizationList"] = [
            {
                "chainId": hex(each.chain_id),
                "address": encode_hex(each.address),
                "nonce": hex(each.nonce),
                "yParity": hex(each.y_parity),
                "r": hex(each.r),
                "s": hex(each.s),
            }
            for each in transaction.authorization_list
        ]
    return fields


def receipt(place: Place) -> Json:
    mined, transaction, found = place.mined, place.transaction, place.receipt
    before = mined.receipts[place.index - 1].gas_used if place.index else 0
    return {
        "type": hex(transaction.type_id or 0),
        "status": hex(int.from_bytes(found.state_root, "big")),
        "transactionHash": encode_hex(transaction.hash),
        "transactionIndex": hex(place.index),
        "blockHash": encode_hex(mined.block.hash),
        "blockNumber": hex(mined.header.block_number),
        "from": encode_hex(transaction.sender),
        "to": encode_hex(transaction.to) if transaction.to else None,
        "contractAddress": None if transaction.to else _created(transaction),
        "gasUsed": hex(found.gas_used - before),
        "cumulativeGasUsed": hex(found.gas_used),
        "effectiveGasPrice": hex(effective_gas_price(transaction, mined.header)),
        "logsBloom": encode_hex(found.bloom.to_bytes(256, "big")),
        "logs": logs(place),
    }


def logs(place: Place) -> list[Json]:
    """What a transaction wrote, with its places in the block."""
    mined = place.mined
    first = logs_before(mined.receipts, place.index)
    return [
        {
            "address": encode_hex(log.address),
            "topics": [encode_hex(topic.to_bytes(32, "big")) for topic in log.topics],
            "data": encode_hex(log.data),
            "blockHash": encode_hex(mined.block.hash),
            "blockNumber": hex(mined.header.block_number),
            "blockTimestamp": hex(mined.header.timestamp),
            "transactionHash": encode_hex(place.transaction.hash),
            "transactionIndex": hex(place.index),
            "logIndex": hex(index),
            "removed": False,
        }
        for index, log in enumerate(place.receipt.logs, start=first)
    ]


def effective_gas_price(transaction: SignedTransactionAPI, header: BlockHeaderAPI) -> int:
    """Wei that a unit of gas cost in this block (EIP-1559)."""
    fee, tip = fees(transaction)
    return min(fee, tip + base_fee(header))


def _created(transaction: SignedTransactionAPI) -> str:
    """The address of a new contract (yellow paper, equation 87)."""
    return encode_hex(keccak(rlp.encode([transaction.sender, transaction.nonce]))[12:])
