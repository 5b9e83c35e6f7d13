"""A prompt at rest: encrypted, and only for as long as its job runs.

So a lost Redis loses no job, and a stolen database tells no prompt.
"""

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass

import msgpack
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.prefix_hashes import prefix_hashes

NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class PromptText:
    """The part of a request that is a user's own text."""

    token_ids: list[int]
    stop: list[str]


class PromptVault:
    """AES-256-GCM under one key; the request id is authenticated along, so that a ciphertext
    cannot be moved to another job."""

    def __init__(self, key_base64: str) -> None:
        """
        Raises:
            ValueError: the key is not 32 bytes in base64.
        """
        self._key = base64.b64decode(key_base64, validate=True)
        if len(self._key) != 32:
            raise ValueError(
                "FAR_GENERATION__PROMPT_KEY must be 32 random bytes in base64. "
                "Make one: openssl rand -base64 32"
            )
        self._cipher = AESGCM(self._key)

    def encrypt(self, request_id: str, prompt: PromptText) -> bytes:
        """The prompt's ciphertext, which only :meth:`decrypt` for the same request id reads."""
        nonce = os.urandom(NONCE_BYTES)
        plaintext: bytes = msgpack.packb((prompt.token_ids, prompt.stop))
        return nonce + self._cipher.encrypt(nonce, plaintext, request_id.encode())

    def decrypt(self, request_id: str, ciphertext: bytes) -> PromptText:
        """The prompt of a ciphertext.

        Raises:
            cryptography.exceptions.InvalidTag: another key, another job, or a changed byte.
        """
        nonce, body = ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:]
        token_ids, stop = msgpack.unpackb(self._cipher.decrypt(nonce, body, request_id.encode()))
        return PromptText(token_ids=token_ids, stop=stop)

    def digest(self, request: bytes) -> bytes:
        """Keyed, so that a short prompt cannot be found by hashing guesses."""
        return hmac.digest(self._key, request, hashlib.sha256)

    def prefix(self, user: str, token_ids: list[int]) -> list[bytes]:
        """Keyed hashes of the prompt's prefixes (:mod:`mesh.prefix_hashes`)."""
        return prefix_hashes(token_ids, key=self._key, user=user)
