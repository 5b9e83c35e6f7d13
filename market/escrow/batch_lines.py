"""A batch's lines as the escrow's ``settle`` takes them and its ``BatchLines`` event shows them.

A line is 32 bytes: an account's 20, then 12 of an amount in base units, the most significant first.
"""

from collections.abc import Mapping

from eth_typing import HexStr
from web3 import Web3

ADDRESS_BYTES = 20
AMOUNT_BYTES = 12


def pack_line(wallet: str, units: int) -> bytes:
    """One debit or credit.

    Raises:
        ValueError: no address, or an amount that does not fit in 96 bits.
    """
    if not Web3.is_address(wallet):
        raise ValueError(f"{wallet} is no address.")
    address = Web3.to_bytes(hexstr=HexStr(wallet))
    try:
        return address + units.to_bytes(AMOUNT_BYTES)
    except OverflowError:
        raise ValueError(f"{units} base units do not fit in a line.") from None


def pack_lines(amounts: Mapping[str, int]) -> list[bytes]:
    """A line for each wallet, in the order of their addresses."""
    return sorted(pack_line(wallet, units) for wallet, units in amounts.items())


def unpack_line(line: bytes) -> tuple[str, int]:
    """The account, with its checksum, and the amount in base units."""
    address, amount = line[:ADDRESS_BYTES], line[ADDRESS_BYTES:]
    return Web3.to_checksum_address(address), int.from_bytes(amount)
