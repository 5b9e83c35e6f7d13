"""Keyed hashes of a prompt's prefixes, by which a node finds what it has computed before.

Who lacks the key learns from a hash only that two prompts of one user begin alike. The user is part
of the key, so nobody can find out by timing what others have asked.
"""

import hashlib
from collections.abc import Sequence

BLOCK_TOKENS = 32
"""Tokens between two hashed prefixes: a shorter common one is computed again in one forward."""

HASH_BYTES = 16


def prefix_hashes(token_ids: Sequence[int], *, key: bytes, user: str) -> list[bytes]:
    """Hashes of the first 32, 64, ... tokens. The last token is in none: it is always computed,
    since its hidden state is what the next token is chosen from."""
    hasher = hashlib.blake2b(user.encode(), key=key, digest_size=HASH_BYTES)
    hashes = []
    for end in range(BLOCK_TOKENS, len(token_ids), BLOCK_TOKENS):
        for token_id in token_ids[end - BLOCK_TOKENS : end]:
            hasher.update(token_id.to_bytes(4, "little"))
        hashes.append(hasher.digest())
    return hashes
