"""Who is calling: bearer tokens (JWT) of users and of nodes, and one-time nonces."""

import secrets
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import jwt
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from redis.asyncio import Redis

from api.services import Services, WithServices
from mesh import names
from mesh.errors import Forbidden, NonceUnknown, TokenExpired, TokenInvalid, TokenMissing

ALGORITHM = "HS256"

Kind = Literal["user", "node", "machine"]
"""A wallet that logged in; a node; a machine that may register nodes for a wallet."""

Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(HTTPBearer(auto_error=False, bearerFormat="JWT", description="From /api/auth/login.")),
]


def issue_token(services: Services, subject: str, kind: Kind) -> str:
    """A signed token for a wallet or a node id."""
    auth = services.settings.auth
    lifetime = auth.token_ttl if kind == "user" else auth.node_token_ttl
    now = int(time.time())
    claims = {"sub": subject, "kind": kind, "iat": now, "exp": now + lifetime}
    return jwt.encode(claims, auth.jwt_secret.get_secret_value(), algorithm=ALGORITHM)


async def hand_out_nonce(services: Services) -> str:
    """A fresh nonce that can be used once, soon."""
    nonce = secrets.token_hex(16)  # EIP-4361 wants letters and digits
    await services.redis.set(names.nonce(nonce), 1, ex=services.settings.auth.nonce_ttl)
    return nonce


async def use_nonce(redis: Redis, nonce: str) -> None:
    """
    Raises:
        NonceUnknown: never handed out, used already, or expired.
    """
    if not await redis.delete(names.nonce(nonce)):
        raise NonceUnknown(
            "This nonce was used already, has expired, or is not ours. "
            "Ask /api/auth/nonce for another and sign again."
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """A logged-in user."""

    wallet: str


def _subject(bearer: HTTPAuthorizationCredentials | None, services: Services, kind: Kind) -> str:
    if bearer is None:
        raise TokenMissing("Log in at /api/auth/login and send 'Authorization: Bearer <token>'.")
    try:
        claims = jwt.decode(
            bearer.credentials,
            services.settings.auth.jwt_secret.get_secret_value(),
            algorithms=[ALGORITHM],
            options={"require": ["sub", "kind", "exp"]},
        )
    except jwt.ExpiredSignatureError:
        again = "Log in again" if kind == "user" else "Register again"
        raise TokenExpired(f"This token has expired. {again}.") from None
    except jwt.InvalidTokenError:
        raise TokenInvalid("This token is not one of ours.") from None
    if claims["kind"] != kind:
        raise Forbidden(f"This endpoint is for {kind}s; the token is a {claims['kind']}'s.")
    subject: str = claims["sub"]
    return subject


async def _caller(bearer: Bearer, services: WithServices) -> Caller:
    return Caller(wallet=_subject(bearer, services, "user"))


def wallet_of_machine(bearer: HTTPAuthorizationCredentials | None, services: Services) -> str:
    """The wallet for which the calling machine may register nodes.

    Raises:
        NotAuthenticated: no token, or none of ours.
        Forbidden: not a machine's token.
    """
    return _subject(bearer, services, "machine")


def node_or_machine(bearer: HTTPAuthorizationCredentials | None, services: Services) -> str:
    """The id of the node, or the wallet of the machine, that calls.

    Raises:
        NotAuthenticated: no token, or none of ours.
        Forbidden: a token of neither.
    """
    try:
        return _subject(bearer, services, "node")
    except Forbidden:
        return wallet_of_machine(bearer, services)


async def _node_id(bearer: Bearer, services: WithServices) -> str:
    return _subject(bearer, services, "node")


LoggedIn = Annotated[Caller, Depends(_caller)]
CallingNode = Annotated[str, Depends(_node_id)]
