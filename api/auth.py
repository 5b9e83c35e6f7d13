"""Who is calling: bearer tokens (JWT) of users and of nodes, and one-time nonces."""

import secrets
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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


def issue_token(services: Services, subject: str, kind: Kind, *, registration: int = 1) -> str:
    """A signed token for a wallet or a node id. A node's is good until it registers again, which
    ``registration`` counts."""
    auth = services.settings.auth
    lifetime = auth.token_ttl if kind == "user" else auth.node_token_ttl
    now = int(time.time())
    claims = {"sub": subject, "kind": kind, "iat": now, "exp": now + lifetime}
    if kind == "node":
        claims["registration"] = registration
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


@dataclass(frozen=True, slots=True)
class Registration:
    """A node that calls, and which of its registrations gave it its token."""

    node_id: str
    number: int


def _claims(bearer: HTTPAuthorizationCredentials | None, services: Services) -> dict[str, Any]:
    if bearer is None:
        raise TokenMissing("Log in at /api/auth/login and send 'Authorization: Bearer <token>'.")
    try:
        claims: dict[str, Any] = jwt.decode(
            bearer.credentials,
            services.settings.auth.jwt_secret.get_secret_value(),
            algorithms=[ALGORITHM],
            options={"require": ["sub", "kind", "exp"]},
        )
    except jwt.ExpiredSignatureError:
        raise TokenExpired("This token has expired. Log in or register again.") from None
    except jwt.InvalidTokenError:
        raise TokenInvalid("This token is not one of ours.") from None
    return claims


def _claims_of(
    bearer: HTTPAuthorizationCredentials | None, services: Services, kind: Kind
) -> dict[str, Any]:
    claims = _claims(bearer, services)
    if claims["kind"] != kind:
        raise Forbidden(f"This endpoint is for {kind}s; the token is a {claims['kind']}'s.")
    return claims


def _subject(bearer: HTTPAuthorizationCredentials | None, services: Services, kind: Kind) -> str:
    subject: str = _claims_of(bearer, services, kind)["sub"]
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


def registration_of(
    bearer: HTTPAuthorizationCredentials | None, services: Services
) -> Registration:
    """The calling node, and which of its registrations gave it its token.

    Raises:
        NotAuthenticated: no token, or none of ours.
        Forbidden: not a node's token.
    """
    claims = _claims_of(bearer, services, "node")
    return Registration(claims["sub"], claims.get("registration", 1))


def wallet_of_user(bearer: HTTPAuthorizationCredentials | None, services: Services) -> str:
    """The wallet that is logged in.

    Raises:
        NotAuthenticated: no token, or none of ours.
        Forbidden: not a user's token.
    """
    return _subject(bearer, services, "user").lower()


def may_see_node(
    bearer: HTTPAuthorizationCredentials | None, services: Services, node_id: str, wallet: str
) -> bool:
    """Whether the caller is a node itself, or its wallet, or a machine of that.

    Raises:
        NotAuthenticated: no token, or none of ours.
    """
    claims = _claims(bearer, services)
    mine = node_id if claims["kind"] == "node" else wallet
    return bool(claims["sub"].lower() == mine.lower())


async def _registration(bearer: Bearer, services: WithServices) -> Registration:
    return registration_of(bearer, services)


LoggedIn = Annotated[Caller, Depends(_caller)]
CallingRegistration = Annotated[Registration, Depends(_registration)]
