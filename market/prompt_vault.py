"""Prompts and answers at rest: encrypted, and only for as long as they are needed.

So a lost Redis loses no job and no answer, and a stolen database tells neither.
"""

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass, field
from typing import Any, Self

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from market.key_derivation import KEY_BYTES, derive_key
from mesh.prefix_hashes import prefix_hashes

NONCE_BYTES = 12

KEY_ID_BYTES = 8
"""Few keys are in use at once; an id that two share would need 2^32 of them."""


@dataclass(frozen=True, slots=True)
class PromptText:
    """The part of a request that is a user's own text. ``sampling``: fields of
    :class:`mesh.wire.SamplingParams` that are not as they are by default, beside those that the
    job's row has."""

    token_ids: list[int]
    stop: list[str]
    sampling: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        packed: bytes = msgpack.packb((self.token_ids, self.stop, self.sampling))
        return packed

    @classmethod
    def from_bytes(cls, packed: bytes) -> Self:
        # Jobs from before requests had more of them have no third part.
        return cls(*msgpack.unpackb(packed, strict_map_key=False))


class PromptVault:
    """AES-256-GCM; the context is authenticated along, so that a ciphertext cannot be moved to
    another job, or an answer to where a prompt was.

    A ciphertext begins with the id of its key. The first key encrypts and the others only decrypt,
    so that a key can be replaced while jobs run.
    """

    def __init__(self, secrets: str) -> None:
        """
        Args:
            secrets: Each 32 bytes in base64, separated by commas; the newest first.

        Raises:
            ValueError: one is something else.
        """
        self._keys = [_Key.of(_decoded(secret)) for secret in secrets.split(",")]
        self._by_id = {key.id: key for key in self._keys}

    def encrypt(self, context: str, plaintext: bytes) -> bytes:
        """The ciphertext, which only :meth:`decrypt` for the same context reads."""
        key, nonce = self._keys[0], os.urandom(NONCE_BYTES)
        return key.id + nonce + key.cipher.encrypt(nonce, plaintext, context.encode())

    def decrypt(self, context: str, ciphertext: bytes) -> bytes:
        """The plaintext.

        Raises:
            cryptography.exceptions.InvalidTag: none of our keys, another context, or a changed
                byte.
        """
        key = self._by_id.get(ciphertext[:KEY_ID_BYTES])
        nonce = ciphertext[KEY_ID_BYTES : KEY_ID_BYTES + NONCE_BYTES]
        if key is None or len(nonce) < NONCE_BYTES:
            raise InvalidTag
        body = ciphertext[KEY_ID_BYTES + NONCE_BYTES :]
        return key.cipher.decrypt(nonce, body, context.encode())

    def digests(self, request: bytes) -> list[bytes]:
        """The request's digest by each key, the newest first. Keyed, so that a short prompt cannot
        be found by hashing guesses."""
        return [hmac.digest(key.digest_key, request, hashlib.sha256) for key in self._keys]

    def prefix(self, user: str, token_ids: list[int]) -> list[bytes]:
        """Keyed hashes of the prompt's prefixes (:mod:`mesh.prefix_hashes`)."""
        return prefix_hashes(token_ids, key=self._keys[0].prefix_key, user=user)


@dataclass(frozen=True, slots=True)
class _Key:
    """All that is derived from one secret. ``id``: no secret, and of no use to guess one."""

    id: bytes
    cipher: AESGCM
    digest_key: bytes
    prefix_key: bytes

    @classmethod
    def of(cls, secret: bytes) -> Self:
        return cls(
            id=derive_key(secret, "far-mesh prompt key id", size=KEY_ID_BYTES),
            cipher=AESGCM(derive_key(secret, "far-mesh prompt encryption")),
            digest_key=derive_key(secret, "far-mesh request digest"),
            prefix_key=derive_key(secret, "far-mesh prefix hash"),
        )


def _decoded(secret: str) -> bytes:
    found = base64.b64decode(secret.strip(), validate=True)
    if len(found) != KEY_BYTES:
        raise ValueError(
            "FAR_GENERATION__PROMPT_KEY must be 32 random bytes in base64, or several such keys, "
            "separated by commas. Make one: openssl rand -base64 32"
        )
    return found
