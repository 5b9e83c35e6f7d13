"""The text of an API key: random, checkable without a database, and known to secret scanners.

As GitHub's tokens: a prefix that says whose it is, and a checksum at the end. Scanners find it by
:data:`PATTERN`.
"""

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "farmesh_sk_"
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_BITS = 256
RANDOM_LENGTH = 43
"""Characters of base 62 that have at least 256 bits."""
CHECKSUM_LENGTH = 6
"""Characters of base 62 that have at least 32 bits."""
PATTERN = rf"\b{PREFIX}[0-9A-Za-z]{{{RANDOM_LENGTH + CHECKSUM_LENGTH}}}\b"

_WHOLE = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{RANDOM_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})")


def new_key() -> str:
    """A key that nobody has, from the system's random numbers."""
    body = _base62(secrets.randbits(RANDOM_BITS), RANDOM_LENGTH)
    return f"{PREFIX}{body}{_checksum(body)}"


def is_well_formed(text: str) -> bool:
    """Whether a text may be a key that was once made: its form and its checksum are right."""
    found = _WHOLE.fullmatch(text)
    return found is not None and _checksum(found[1]) == found[2]


def hash_of(key: str) -> bytes:
    """What is stored instead of the key: its SHA-256. With 256 random bits in it there is nothing
    to try out, so that neither salt nor a slow hash is needed; and it is looked up by an index, of
    which no time tells more than a hash that nobody can aim at."""
    return hashlib.sha256(key.encode()).digest()


def hint_of(key: str) -> str:
    """The key as its owner recognizes it: four characters of 43 at each end."""
    return f"{key[: len(PREFIX) + 4]}...{key[-4:]}"


def _checksum(body: str) -> str:
    """CRC-32, in base 62."""
    return _base62(zlib.crc32(body.encode()), CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(BASE62))
        digits.append(BASE62[digit])
    return "".join(reversed(digits))
