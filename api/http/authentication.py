"""Who is calling: bearer tokens (JWT) of users and of nodes, and one-time nonces."""

import secrets
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jwt
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from redis.asyncio import Redis
from sqlalchemy import func, update

from api.http.services import Services, WithServices
from market.errors import Forbidden
from market.identity.errors import (
    MachineRevoked,
    NonceUnknown,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
)
from market.identity.tables import Machine
from market.nodes.node import NodeIncarnation
from market.nodes.registered_node import is_current
from mesh import redis_keys

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
    claims: dict[str, object] = {"sub": subject, "kind": kind}
    if kind == "node":
        claims["registration"] = registration
    return _sign(services, claims, lifetime)


def issue_machine_token(services: Services, wallet: str, machine_id: str) -> str:
    """A signed token for a machine that the wallet has let in."""
    claims: dict[str, object] = {"sub": wallet, "kind": "machine", "machine": machine_id}
    return _sign(services, claims, services.settings.auth.machine_token_ttl)


def _sign(services: Services, claims: dict[str, object], lifetime: int) -> str:
    now = int(time.time())
    secret = services.settings.auth.jwt_secret.get_secret_value()
    return jwt.encode({**claims, "iat": now, "exp": now + lifetime}, secret, algorithm=ALGORITHM)


async def issue_nonce(services: Services) -> str:
    """A fresh nonce that can be used once, soon."""
    nonce = secrets.token_hex(16)  # EIP-4361 wants letters and digits
    await services.redis.set(redis_keys.nonce(nonce), 1, ex=services.settings.auth.nonce_ttl)
    return nonce


async def consume_nonce(redis: Redis, nonce: str) -> None:
    """
    Raises:
        NonceUnknown: never handed out, used already, or expired.
    """
    if not await redis.delete(redis_keys.nonce(nonce)):
        raise NonceUnknown(
            "This nonce was used already, has expired, or is not ours. "
            "Ask /api/auth/nonce for another and sign again."
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """A logged-in user."""

    wallet: str


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


@dataclass(frozen=True, slots=True)
class CallingMachine:
    """A machine, and the wallet that let it in."""

    machine_id: str
    wallet: str


async def machine_of(
    bearer: HTTPAuthorizationCredentials | None, services: Services
) -> CallingMachine:
    """The machine that calls; notes that it did.

    Raises:
        NotAuthenticated: no token, none of ours, or one that the wallet has taken back.
        Forbidden: not a machine's token.
    """
    claims = _claims_of(bearer, services, "machine")
    async with services.sessions.begin() as db:
        used: Machine | None = await db.scalar(
            update(Machine)
            .where(Machine.machine_id == claims.get("machine"), Machine.revoked_at.is_(None))
            .values(last_used_at=func.now())
            .returning(Machine)
        )
    if used is None:
        raise MachineRevoked("The wallet has taken this machine's token back. Log in again.")
    return CallingMachine(used.machine_id, used.wallet_address)


def owner_of_machine(
    bearer: HTTPAuthorizationCredentials | None, services: Services, machine_id: str
) -> str:
    """The wallet in whose name the caller may speak about a machine: the user himself, or the
    machine about itself.

    Raises:
        NotAuthenticated: no token, or none of ours.
        Forbidden: a node's token, or another machine's.
    """
    claims = _claims(bearer, services)
    if claims["kind"] != "user" and claims.get("machine") != machine_id:
        raise Forbidden("Only its wallet, or the machine itself, may do this.")
    wallet: str = claims["sub"]
    return wallet


def registration_of(
    bearer: HTTPAuthorizationCredentials | None, services: Services
) -> NodeIncarnation:
    """The calling node, and which of its registrations gave it its token.

    Raises:
        NotAuthenticated: no token, or none of ours.
        Forbidden: not a node's token.
    """
    claims = _claims_of(bearer, services, "node")
    return NodeIncarnation(claims["sub"], claims.get("registration", 1))


def wallet_of_user(bearer: HTTPAuthorizationCredentials | None, services: Services) -> str:
    """The wallet that is logged in.

    Raises:
        NotAuthenticated: no token, or none of ours.
        Forbidden: not a user's token.
    """
    return _subject(bearer, services, "user").lower()


async def standing_registration(
    bearer: HTTPAuthorizationCredentials | None, services: Services
) -> NodeIncarnation:
    """The calling node, whose token is still good: it has not registered again, and the machine
    that registered it was not sent away.

    Raises:
        NotAuthenticated: no token, or none that is good.
        Forbidden: not a node's token.
    """
    registration = registration_of(bearer, services)
    async with services.sessions() as db:
        if not await is_current(db, registration):
            raise TokenInvalid("The node's token is not good any more. Register again.")
    return registration


async def may_see_node(
    bearer: HTTPAuthorizationCredentials | None, services: Services, node_id: str, wallet: str
) -> bool:
    """Whether the caller is a node itself, or its wallet, or a machine of that.

    Raises:
        NotAuthenticated: no token, or none that is good.
    """
    claims = _claims(bearer, services)
    if claims["kind"] == "node":
        return (await standing_registration(bearer, services)).node_id == node_id
    if claims["kind"] == "machine":
        return (await machine_of(bearer, services)).wallet == wallet
    return wallet_of_user(bearer, services) == wallet


async def node_or_machine(bearer: HTTPAuthorizationCredentials | None, services: Services) -> str:
    """The id of the node, or the wallet of the machine, that calls.

    Raises:
        NotAuthenticated: no token, or none that is good.
        Forbidden: a token of neither.
    """
    if _claims(bearer, services)["kind"] == "node":
        return (await standing_registration(bearer, services)).node_id
    return (await machine_of(bearer, services)).wallet


async def _registration(bearer: Bearer, services: WithServices) -> NodeIncarnation:
    return registration_of(bearer, services)


LoggedIn = Annotated[Caller, Depends(_caller)]
CallingRegistration = Annotated[NodeIncarnation, Depends(_registration)]
