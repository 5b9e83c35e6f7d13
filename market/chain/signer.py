"""What a signer is."""

from typing import NamedTuple, Protocol

from eth_typing import ChecksumAddress


class Signature(NamedTuple):
    """ECDSA on secp256k1. ``v`` is the parity of y, 0 or 1; ``s`` is in the lower half (EIP-2)."""

    v: int
    r: int
    s: int


class Signer(Protocol):
    """An account that can sign. The same digest may give another signature each time."""

    @property
    def address(self) -> ChecksumAddress: ...

    async def sign(self, digest: bytes) -> Signature:
        """Sign 32 bytes that are a hash already.

        Raises:
            ChainError: it cannot.
        """
        ...
