"""Ed25519 keys of the operator and of nodes, and signatures that hold for one purpose only."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_BYTES = 32
SIGNATURE_BYTES = 64


class SigningKey:
    """A private key. Its seed is any 32 random bytes (``openssl rand -hex 32``)."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "SigningKey":
        """A fresh key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_hex(cls, seed: str) -> "SigningKey":
        """
        Raises:
            ValueError: not 32 bytes in hex.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(_key_bytes(seed)))

    @property
    def seed(self) -> str:
        """The private half, as hex. Keep it secret."""
        return self._key.private_bytes_raw().hex()

    @property
    def public(self) -> bytes:
        """The public half."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, purpose: bytes, body: bytes) -> bytes:
        """A signature over ``body`` that is worth nothing for another purpose."""
        return self._key.sign(purpose + body)


def verify(public: bytes, signature: bytes, purpose: bytes, body: bytes) -> bool:
    """Whether the owner of the key signed exactly this, for this purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, purpose + body)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_from_hex(text: str) -> bytes:
    """
    Raises:
        ValueError: not 32 bytes in hex.
    """
    return _key_bytes(text)


def _key_bytes(text: str) -> bytes:
    found = bytes.fromhex(text.strip())
    if len(found) != KEY_BYTES:
        raise ValueError(f"A key is {KEY_BYTES} bytes in hex; these are {len(found)}.")
    return found
