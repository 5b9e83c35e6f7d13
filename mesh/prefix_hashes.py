"""Names for the beginnings of prompts, so that a node can find what it has computed before.

A name is a keyed hash: who lacks the key learns from it only that two prompts of one user begin
alike. The user is part of the key, so nobody can find out by timing what others have asked.
"""

import hashlib
from collections.abc import Sequence

EVERY = 32
"""Tokens between two named beginnings: a shorter common one is computed again in one forward."""

NAME_BYTES = 16


def chain(token_ids: Sequence[int], *, key: bytes, user: str) -> list[bytes]:
    """Names of the first 32, 64, ... tokens. The last token is in none: it is always computed,
    since its hidden state is what the next token is chosen from."""
    hasher = hashlib.blake2b(user.encode(), key=key, digest_size=NAME_BYTES)
    names = []
    for end in range(EVERY, len(token_ids), EVERY):
        for token_id in token_ids[end - EVERY : end]:
            hasher.update(token_id.to_bytes(4, "little"))
        names.append(hasher.digest())
    return names
