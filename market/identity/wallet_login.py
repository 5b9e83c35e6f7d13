"""A wallet's login: an EIP-4361 message, signed once."""

import datetime as dt

from redis.asyncio import Redis

from market.identity.errors import (
    DomainMismatch,
    LoginMessageExpired,
    LoginMessageInvalid,
    SignatureMismatch,
)
from market.identity.login_message import LoginMessage, parse
from market.identity.nonces import consume_nonce
from mesh import signed_texts
from mesh.clock_skew import CLOCK_SKEW


async def check_login(
    redis: Redis, *, domain: str, message: str, signature: str, wallet_address: str
) -> None:
    """Return if the wallet has signed this message, which names our domain, a nonce that was not
    used yet, and an expiration time.

    Raises:
        NotAuthenticated: whatever of it does not hold.
    """
    parsed = parse(message)
    if parsed.domain != domain:
        raise DomainMismatch(f"The message is for another domain; this is {domain}.")
    _check_time(parsed)
    if parsed.address.lower() != wallet_address:
        raise SignatureMismatch("The message names another wallet than wallet_address.")
    if not signed_texts.signed_by(message, signature, wallet_address):
        raise SignatureMismatch("The signature is not this wallet's over this message.")
    await consume_nonce(redis, parsed.nonce)


def _check_time(message: LoginMessage) -> None:
    if message.expiration_time is None:
        raise LoginMessageInvalid("The message needs an Expiration Time.")
    now, skew = dt.datetime.now(dt.UTC), dt.timedelta(seconds=CLOCK_SKEW)
    if now - message.expiration_time >= skew:
        raise LoginMessageExpired("The message has expired. Sign a new one.")
    if message.not_before is not None and message.not_before - now > skew:
        raise LoginMessageInvalid("The message is not valid yet: see its Not Before.")
