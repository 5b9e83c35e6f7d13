"""Logs of a range of blocks, and filters that clients poll (`eth_getLogs`, `eth_newFilter`)."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from eth_utils.hexadecimal import encode_hex

from stack.dev_chain import formats
from stack.dev_chain.errors import InvalidParams, RpcError
from stack.dev_chain.evm.chain import DevelopmentChain, MinedBlock, Place
from stack.dev_chain.params import BlockId, LogFilter

MAX_FILTERS = 1000
"""Filters that are kept; then the oldest goes."""


def find(chain: DevelopmentChain, wanted: LogFilter) -> list[Any]:
    """The logs that a filter admits.

    Raises:
        RpcError: no block has its hash.
        InvalidParams: its range ends before it begins.
    """
    if wanted.first.hash is not None:
        mined = chain.block(wanted.first)
        if mined is None:
            raise RpcError("unknown block")
        return list(_admitted(mined, wanted))
    first, last = (_number(chain, each) for each in (wanted.first, wanted.last))
    if first > last:
        raise InvalidParams("invalid block range params")
    return [log for mined in chain.blocks(first, last) for log in _admitted(mined, wanted)]


Watch = Callable[[MinedBlock], list[Any]]
"""What a filter tells of a block."""


@dataclass(slots=True)
class Filter:
    """What a client polls."""

    watch: Watch
    told: int
    """Number of the newest block that it has told of."""
    wanted: LogFilter | None
    """For a filter of logs: which."""


class Filters:
    """Filters by their numbers."""

    def __init__(self, chain: DevelopmentChain) -> None:
        self._chain = chain
        self._ids = itertools.count(1)
        self._filters: dict[int, Filter] = {}

    def new_logs(self, wanted: LogFilter) -> int:
        return self._add(lambda mined: list(_admitted(mined, wanted)), wanted)

    def new_blocks(self) -> int:
        return self._add(lambda mined: [encode_hex(mined.block.hash)])

    def new_transactions(self) -> int:
        return self._add(lambda mined: [encode_hex(each.hash) for each in mined.block.transactions])

    def changes(self, number: int) -> list[Any]:
        """What is new since the last call.

        Raises:
            RpcError: no such filter.
        """
        found = self._filter(number)
        # The chain may have become shorter.
        told = min(found.told, self._chain.height)
        found.told = self._chain.height
        blocks = self._chain.blocks(told + 1, found.told)
        return [change for mined in blocks for change in found.watch(mined)]

    def logs(self, number: int) -> list[Any]:
        """All logs that a filter admits.

        Raises:
            RpcError: no such filter of logs.
        """
        wanted = self._filter(number).wanted
        if wanted is None:
            raise RpcError("filter not found")
        return find(self._chain, wanted)

    def remove(self, number: int) -> bool:
        """Whether there was such a filter."""
        return self._filters.pop(number, None) is not None

    def _filter(self, number: int) -> Filter:
        found = self._filters.get(number)
        if found is None:
            raise RpcError("filter not found")
        return found

    def _add(self, watch: Watch, wanted: LogFilter | None = None) -> int:
        if len(self._filters) >= MAX_FILTERS:
            del self._filters[next(iter(self._filters))]
        number = next(self._ids)
        self._filters[number] = Filter(watch, self._chain.height, wanted)
        return number


def _number(chain: DevelopmentChain, wanted: BlockId) -> int:
    if wanted.number is not None:
        return wanted.number
    return 0 if wanted.tag == "earliest" else chain.height


def _admitted(mined: MinedBlock, wanted: LogFilter) -> Iterator[Any]:
    for index, receipt in enumerate(mined.receipts):
        written = formats.logs(Place(mined, index)) if receipt.logs else []
        for log, shown in zip(receipt.logs, written, strict=True):
            if wanted.admits(log.address, tuple(each.to_bytes(32, "big") for each in log.topics)):
                yield shown
