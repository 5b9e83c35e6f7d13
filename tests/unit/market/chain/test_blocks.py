"""Bloom filters as another implementation has them, and blocks that lack something."""

import random
from typing import Any

import pytest
from eth_bloom import BloomFilter

from market.chain.blocks import bloom_bits, parse_header, parse_logs
from market.chain.errors import ChainError

BLOCK: dict[str, Any] = {
    "number": "0x2",
    "hash": "0xaa",
    "parentHash": "0xbb",
    "receiptsRoot": "0xcc",
    "logsBloom": "0x00",
    "timestamp": "0x9",
    "transactions": ["0xdd"],
    "extraData": "0x" + "d9" * 278,
}


def test_bits_of_the_bloom_filter() -> None:
    dice = random.Random(7)
    for size in (20, 32):
        for _ in range(50):
            value = dice.randbytes(size)
            assert bloom_bits(value) == int(BloomFilter.from_iterable([value]))


def test_a_header_needs_no_more_than_its_fields() -> None:
    header = parse_header(BLOCK)
    assert (header.number, header.timestamp, header.transactions) == (2, 9, ("0xdd",))


@pytest.mark.parametrize("field", sorted(BLOCK.keys() - {"extraData"}))
def test_a_block_without_a_field_is_an_error(field: str) -> None:
    with pytest.raises(ChainError, match="without some field"):
        parse_header({name: BLOCK[name] for name in BLOCK if name != field})


def test_a_log_without_a_field_is_an_error() -> None:
    with pytest.raises(ChainError, match="without some field"):
        parse_logs([{"address": "0x" + "11" * 20}])
