"""Login with a wallet: an EIP-4361 message, signed once, for a bearer token."""

import datetime as dt

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from siwe import SiweMessage

from api.http.authentication import consume_nonce, issue_nonce, issue_token
from api.http.rate_limits import address_of, limit
from api.http.services import WithServices
from api.schemas.base import RequestBody, WalletAddress
from market.identity.errors import (
    DomainMismatch,
    LoginMessageExpired,
    LoginMessageInvalid,
    SignatureMismatch,
)
from mesh import signed_texts

router = APIRouter(prefix="/api/auth", tags=["auth"])


class Nonce(BaseModel):
    nonce: str
    domain: str
    """The domain that a login message has to name."""
    expires_in: int


class Login(RequestBody):
    wallet_address: WalletAddress
    message: str = Field(max_length=4096)
    signature: str = Field(max_length=1024)


class LoggedInToken(BaseModel):
    token: str
    wallet_address: str
    expires_in: int


@router.get("/nonce")
async def nonce(request: Request, services: WithServices) -> Nonce:
    """A nonce to sign, for a login or a node's registration. Can be used once."""
    auth = services.settings.auth
    await limit(
        services, services.settings.limits.logins_per_ip, "nonce", address_of(request, services)
    )
    return Nonce(nonce=await issue_nonce(services), domain=auth.domain, expires_in=auth.nonce_ttl)


@router.post("/login")
async def login(body: Login, request: Request, services: WithServices) -> LoggedInToken:
    """Exchange a signed EIP-4361 message for a token.

    The message must name our domain, a nonce from `/api/auth/nonce` and an expiration time.
    """
    auth = services.settings.auth
    await limit(
        services, services.settings.limits.logins_per_ip, "login", address_of(request, services)
    )
    message = _parse(body.message)
    if message.domain != auth.domain:
        raise DomainMismatch(f"The message is for another domain; this is {auth.domain}.")
    _check_time(message)
    if message.address.lower() != body.wallet_address:
        raise SignatureMismatch("The message names another wallet than wallet_address.")
    if not signed_texts.signed_by(body.message, body.signature, body.wallet_address):
        raise SignatureMismatch("The signature is not this wallet's over this message.")
    await consume_nonce(services.redis, message.nonce)
    return LoggedInToken(
        token=issue_token(services, body.wallet_address, "user"),
        wallet_address=body.wallet_address,
        expires_in=auth.token_ttl,
    )


def _parse(text: str) -> SiweMessage:
    try:
        # By the regular expression: the grammar takes seconds for a few thousand characters.
        return SiweMessage.from_message(text, abnf=False)
    except ValueError:
        raise LoginMessageInvalid(
            "The message is not an EIP-4361 (Sign-In with Ethereum) message."
        ) from None


def _check_time(message: SiweMessage) -> None:
    if message.expiration_time is None:
        raise LoginMessageInvalid("The message needs an Expiration Time.")
    now = dt.datetime.now(dt.UTC)
    if dt.datetime.fromisoformat(message.expiration_time) <= now:
        raise LoginMessageExpired("The message has expired. Sign a new one.")
    if message.not_before is not None and dt.datetime.fromisoformat(message.not_before) > now:
        raise LoginMessageInvalid("The message is not valid yet: see its Not Before.")
