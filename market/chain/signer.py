"""The interface of signers: an account on the chain that can sign 32 bytes, wherever its key is."""

from typing import NamedTuple, Protocol

from eth_typing import ChecksumAddress


class Signature(NamedTuple):
    """An ECDSA signature on secp256k1.

    ``v`` is the parity of the point's y, 0 or 1; ``s`` is in the lower half of the curve's order
    (EIP-2).
    """

    v: int
    r: int
    s: int


class Signer(Protocol):
    """An account that can sign.

    Signing one digest twice may give two different signatures: what was signed has to be kept.
    """

    @property
    def address(self) -> ChecksumAddress: ...

    async def sign(self, digest: bytes) -> Signature:
        """Sign a digest of 32 bytes, which is not hashed again.

        Raises:
            ChainError: the signer does not sign.
        """
        ...
