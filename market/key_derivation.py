"""Keys derived from a secret, one for each purpose (HKDF with SHA-256, RFC 5869)."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32


def derive_key(secret: bytes, purpose: str, *, size: int = KEY_BYTES) -> bytes:
    """A key of ``size`` bytes, which tells nothing of the secret, nor of keys for other purposes.

    Args:
        secret: Random, of 32 bytes or more: this makes no good key of a password.
        purpose: What the key is for, and for nothing else.
    """
    return HKDF(algorithm=SHA256(), length=size, salt=None, info=purpose.encode()).derive(secret)
