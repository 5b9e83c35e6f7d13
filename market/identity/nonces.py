"""One-time nonces, for whatever a wallet signs."""

import secrets

from redis.asyncio import Redis

from market.identity.errors import NonceUnknown
from mesh import redis_keys


async def issue_nonce(redis: Redis, *, ttl: int) -> str:
    """A fresh nonce that can be used once, within ``ttl`` seconds."""
    nonce = secrets.token_hex(16)  # EIP-4361 wants letters and digits
    await redis.set(redis_keys.nonce(nonce), 1, ex=ttl)
    return nonce


async def consume_nonce(redis: Redis, nonce: str) -> None:
    """
    Raises:
        NonceUnknown: never issued, used already, or expired.
    """
    if not await redis.delete(redis_keys.nonce(nonce)):
        raise NonceUnknown(
            "This nonce was used already, has expired, or is not ours. "
            "Ask /api/auth/nonce for another and sign again."
        )
