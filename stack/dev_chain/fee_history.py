"""Base fees, gas and tips of the newest blocks (`eth_feeHistory`)."""

from collections.abc import Sequence
from typing import Any

from eth.abc import BlockHeaderAPI

from stack.dev_chain.errors import RpcError
from stack.dev_chain.evm.chain import DevelopmentChain, MinedBlock, Place, base_fee
from stack.dev_chain.formats import effective_gas_price
from stack.dev_chain.params import BlockId

MAX_BLOCKS = 1024
"""Blocks of one answer; geth's."""


def fee_history(
    chain: DevelopmentChain, count: int, newest: BlockId, percentiles: Sequence[float] | None
) -> dict[str, Any]:
    """The history of at most ``count`` blocks up to ``newest``, and the base fee after it.

    Raises:
        RpcError: ``newest`` is above the head.
    """
    last = chain.block(newest)
    if last is None:
        raise RpcError(f"request beyond head block: requested {newest.number}, head {chain.height}")
    number = last.header.block_number
    count = min(count, MAX_BLOCKS, number + 1)
    if count == 0:
        return {"oldestBlock": "0x0", "gasUsedRatio": []}
    blocks = list(chain.blocks(number - count + 1, number))
    following = chain.block(BlockId(number=number + 1))
    after = following.header if following else chain.next_header()
    headers: list[Any] = [*(mined.header for mined in blocks), after]
    answer = {
        "oldestBlock": hex(number - count + 1),
        "baseFeePerGas": [hex(header.base_fee_per_gas) for header in headers],
        "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers[:-1]],
        "baseFeePerBlobGas": ["0x1"] * len(headers),
        "blobGasUsedRatio": [0] * count,
    }
    if percentiles:
        answer["reward"] = [[hex(tip) for tip in _tips_at(mined, percentiles)] for mined in blocks]
    return answer


def _tips_at(mined: MinedBlock, percentiles: Sequence[float]) -> list[int]:
    """The tips that so much of the block's gas paid at most."""
    tips = sorted(
        (_tip(place, mined.header), _gas_used(place))
        for place in (Place(mined, index) for index in range(len(mined.receipts)))
    )
    found = []
    for percentile in percentiles:
        left = mined.header.gas_used * percentile / 100
        paid = 0
        for tip, gas in tips:
            paid = tip
            left -= gas
            if left <= 0:
                break
        found.append(paid)
    return found


def _tip(place: Place, header: BlockHeaderAPI) -> int:
    return effective_gas_price(place.transaction, header) - base_fee(header)


def _gas_used(place: Place) -> int:
    before = place.mined.receipts[place.index - 1].gas_used if place.index else 0
    return int(place.receipt.gas_used - before)
