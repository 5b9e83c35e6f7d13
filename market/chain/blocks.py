"""Headers, bloom filters and logs, as JSON-RPC has them.

A header is read without web3: of its fields only these matter, and whatever else a chain puts there
does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hexbytes import HexBytes

from market.chain.errors import ChainError

BLOOM_BITS = 2048


@dataclass(frozen=True, slots=True)
class Header:
    """A block without its transactions' contents."""

    number: int
    hash: str
    parent_hash: str
    receipts_root: str
    """Root of the tree of its receipts: two endpoints with one root have the same logs."""
    logs_bloom: int
    """Bloom filter of the addresses and topics of its logs: see `bloom_bits`."""
    timestamp: int
    transactions: tuple[str, ...]
    """Their hashes."""


def parse_header(block: Any) -> Header:
    """A block of ``eth_getBlockByNumber``.

    Raises:
        ChainError: it lacks a field.
    """
    try:
        return Header(
            number=int(block["number"], 16),
            hash=str(block["hash"]),
            parent_hash=str(block["parentHash"]),
            receipts_root=str(block["receiptsRoot"]),
            logs_bloom=int(block["logsBloom"], 16),
            timestamp=int(block["timestamp"], 16),
            transactions=tuple(map(str, block["transactions"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ChainError(f"The node shows a block without some field: {error!r}") from error


def parse_logs(logs: Sequence[Any]) -> list[dict[str, Any]]:
    """Logs of a receipt as web3 has them.

    Raises:
        ChainError: one lacks a field.
    """
    try:
        return [
            {
                "address": to_checksum_address(log["address"]),
                "topics": [HexBytes(topic) for topic in log["topics"]],
                "data": HexBytes(log["data"]),
                "blockNumber": int(log["blockNumber"], 16),
                "blockHash": HexBytes(log["blockHash"]),
                "transactionHash": HexBytes(log["transactionHash"]),
                "transactionIndex": int(log["transactionIndex"], 16),
                "logIndex": int(log["logIndex"], 16),
            }
            for log in logs
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ChainError(f"The node shows a log without some field: {error!r}") from error


def bloom_bits(value: bytes) -> int:
    """The three bits that an address or a topic sets in the bloom filter of its block (Yellow
    Paper, 4.4.3). Other values may have set them as well."""
    digest = keccak(value)
    bits = 0
    for start in (0, 2, 4):
        bits |= 1 << (int.from_bytes(digest[start : start + 2], "big") % BLOOM_BITS)
    return bits
