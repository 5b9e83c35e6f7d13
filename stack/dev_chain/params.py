"""Parameters of JSON-RPC calls, read into what the chain works with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eth_typing import Address

from mesh import json_text

UINT64 = 2**64
UINT256 = 2**256

TAGS = ("latest", "safe", "finalized", "pending", "earliest")

Parser = Callable[[Any], Any]
"""Reads one parameter.

Raises:
    ValueError: the parameter is not what its method takes; the text says why.
"""


@dataclass(frozen=True, slots=True)
class BlockId:
    """A block by its tag, its number or its hash."""

    tag: str | None = None
    number: int | None = None
    hash: bytes | None = None


LATEST = BlockId(tag="latest")


@dataclass(frozen=True, slots=True)
class TransactionRequest:
    """A transaction that is not signed yet, or a call; what is None its caller left open."""

    sender: Address | None
    to: Address | None
    data: bytes
    value: int
    gas: int | None
    nonce: int | None
    gas_price: int | None
    max_fee: int | None
    max_priority_fee: int | None
    chain_id: int | None
    access_list: tuple[tuple[Address, tuple[int, ...]], ...]

    @property
    def fee_cap(self) -> int:
        """Wei that it pays for a unit of gas at most; 0 where its caller left that open."""
        return self.gas_price or self.max_fee or 0


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which logs a caller wants (``eth_getLogs``)."""

    first: BlockId
    last: BlockId
    addresses: frozenset[bytes]
    topics: tuple[frozenset[bytes], ...]
    """At each place the topics that fit; an empty set fits all."""

    def admits(self, address: bytes, topics: tuple[bytes, ...]) -> bool:
        if self.addresses and address not in self.addresses:
            return False
        return len(topics) >= len(self.topics) and all(
            not wanted or topic in wanted
            for wanted, topic in zip(self.topics, topics, strict=False)
        )


def anything(value: Any) -> Any:
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not a boolean")
    return value


def quantity(value: Any) -> int:
    """A number: hex as JSON-RPC has it, or a JSON number."""
    if isinstance(value, str) and value.startswith("0x"):
        value = int(value, 16) if "_" not in value else -1
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < UINT256:
        raise ValueError("not a quantity of at most 256 bits")
    return value


def uint64(value: Any) -> int:
    number = quantity(value)
    if number >= UINT64:
        raise ValueError("not a quantity of at most 64 bits")
    return number


def data(value: Any) -> bytes:
    """Bytes, in hex."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ValueError("hex string without 0x prefix")
    return bytes.fromhex(value[2:])


def hash32(value: Any) -> bytes:
    found = data(value)
    if len(found) != 32:
        raise ValueError("not 32 bytes")
    return found


def address(value: Any) -> Address:
    found = data(value)
    if len(found) != 20:
        raise ValueError("not the 20 bytes of an address")
    return Address(found)


def block_id(value: Any) -> BlockId:
    """A tag, a number, or an object with one of number and hash (EIP-1898)."""
    if isinstance(value, Mapping):
        if "blockHash" in value:
            return BlockId(hash=hash32(value["blockHash"]))
        value = value.get("blockNumber")
    if isinstance(value, str) and value in TAGS:
        return BlockId(tag=value)
    return BlockId(number=uint64(value))


def block_hash(value: Any) -> BlockId:
    return BlockId(hash=hash32(value))


def transaction_request(value: Any) -> TransactionRequest:
    """The object that `eth_call`, `eth_estimateGas` and `eth_sendTransaction` take."""
    fields = {key: item for key, item in _object(value).items() if item is not None}
    inputs = {data(fields[key]) for key in ("data", "input") if key in fields}
    if len(inputs) > 1:
        raise ValueError('both "data" and "input" are set and not equal')

    def read(key: str, parser: Parser) -> Any:
        return parser(fields[key]) if key in fields else None

    request = TransactionRequest(
        sender=read("from", address),
        to=read("to", address),
        data=inputs.pop() if inputs else b"",
        value=read("value", quantity) or 0,
        gas=read("gas", uint64),
        nonce=read("nonce", uint64),
        gas_price=read("gasPrice", quantity),
        max_fee=read("maxFeePerGas", quantity),
        max_priority_fee=read("maxPriorityFeePerGas", quantity),
        chain_id=read("chainId", quantity),
        access_list=read("accessList", _access_list) or (),
    )
    dynamic = request.max_fee is not None or request.max_priority_fee is not None
    if request.gas_price is not None and dynamic:
        raise ValueError("both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified")
    return request


def log_filter(value: Any) -> LogFilter:
    fields = _object(value)
    if fields.get("blockHash") is not None:
        if fields.get("fromBlock") is not None or fields.get("toBlock") is not None:
            raise ValueError("cannot specify both BlockHash and FromBlock/ToBlock")
        first = last = BlockId(hash=hash32(fields["blockHash"]))
    else:
        first, last = (
            LATEST if fields.get(key) is None else block_id(fields[key])
            for key in ("fromBlock", "toBlock")
        )
    return LogFilter(
        first,
        last,
        frozenset(map(address, _one_or_many(fields.get("address")))),
        tuple(frozenset(map(hash32, _one_or_many(topic))) for topic in fields.get("topics") or ()),
    )


def percentiles(value: Any) -> tuple[float, ...]:
    """Of `eth_feeHistory`: rising numbers from 0 to 100."""
    if not isinstance(value, list) or not all(
        isinstance(each, int | float) and 0 <= each <= 100 for each in value
    ):
        raise ValueError("not an array of numbers from 0 to 100")
    if value != sorted(value) or len(value) > 100:
        raise ValueError("not rising, or more than 100")
    return tuple(value)


def typed_data(value: Any) -> Mapping[str, Any]:
    """EIP-712's object, or its text: libraries send the one or the other."""
    return _object(json_text.loads(value) if isinstance(value, str) else value)


def _access_list(value: Any) -> tuple[tuple[Address, tuple[int, ...]], ...]:
    return tuple(
        (
            address(_object(entry).get("address")),
            tuple(int.from_bytes(hash32(key), "big") for key in entry.get("storageKeys") or ()),
        )
        for entry in value
    )


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("not an object")
    return value


def _one_or_many(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
