"""What a wallet signs instead of sending a token: for one platform, for a while, and once."""

import datetime as dt
from dataclasses import dataclass

from redis.asyncio import Redis

from market.identity.errors import SignatureExpired, SignatureMismatch
from market.identity.nonces import consume_nonce
from market.settings.auth import AuthSettings
from mesh import signed_texts
from mesh.clock_skew import CLOCK_SKEW


@dataclass(frozen=True, slots=True)
class WalletSignature:
    """A signature over a text with a fresh nonce of ours and the time at which it expires (RFC
    3339)."""

    nonce: str
    expires_at: str
    signature: str


async def check_signature(
    redis: Redis, auth: AuthSettings, proof: WalletSignature, *, message: str, wallet_address: str
) -> None:
    """Return if the wallet has signed this message, whose nonce was not used yet.

    Args:
        message: With our domain, the proof's nonce and the proof's expiry in it.

    Raises:
        SignatureExpired: its time is up, or too far ahead.
        SignatureMismatch: signed by another wallet, or another text.
        NonceUnknown: the nonce was used before, or is too old.
    """
    _check_expiry(auth, proof.expires_at)
    if not signed_texts.signed_by(message, proof.signature, wallet_address):
        raise SignatureMismatch(
            f"The signature is not this wallet's over this request, for {auth.domain}."
        )
    await consume_nonce(redis, proof.nonce)


def _check_expiry(auth: AuthSettings, expires_at: str) -> None:
    try:
        left = signed_texts.instant(expires_at) - dt.datetime.now(dt.UTC)
    except ValueError:
        raise SignatureExpired(
            "expires_at is a time in UTC such as 2035-01-31T12:00:00Z."
        ) from None
    if left.total_seconds() <= -CLOCK_SKEW:
        raise SignatureExpired(
            "What was signed has expired. Set this machine's clock right, and sign anew."
        )
    if left.total_seconds() > auth.nonce_ttl + CLOCK_SKEW:
        raise SignatureExpired(
            f"What is signed has to expire within {auth.nonce_ttl} seconds, by a right clock."
        )
