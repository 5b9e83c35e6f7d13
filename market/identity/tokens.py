"""Tokens (JWT) of users, machines and nodes, and of URLs of weights: issued, and verified."""

import time
from collections.abc import Mapping
from typing import Any

import jwt

from market.identity.errors import TokenExpired, TokenInvalid
from market.identity.principal import SCOPES, Principal
from market.settings.auth import AuthSettings
from mesh.clock_skew import CLOCK_SKEW

ALGORITHM = "HS256"

WEIGHTS_AUDIENCE = "weights"
"""Claim `aud` of tokens that open the files of a model's weights, and nothing else."""

MAX_TOKEN = 2048
"""Characters. Ours have some 250; a longer one may have a header of JSON as deep as it likes."""


def issue_user_token(auth: AuthSettings, wallet: str) -> str:
    """A signed token for a wallet that has logged in."""
    return _sign(auth, {"sub": wallet, "kind": "user"}, auth.token_ttl)


def issue_node_token(auth: AuthSettings, node_id: str, registration: int) -> str:
    """A signed token for a node, good until the node registers again, which ``registration``
    counts."""
    claims = {"sub": node_id, "kind": "node", "registration": registration}
    return _sign(auth, claims, auth.node_token_ttl)


def issue_machine_token(auth: AuthSettings, wallet: str, machine_id: str) -> str:
    """A signed token for a machine that the wallet has let in."""
    claims = {"sub": wallet, "kind": "machine", "machine": machine_id}
    return _sign(auth, claims, auth.machine_token_ttl)


def issue_weights_token(auth: AuthSettings, wallet: str, model_id: str, lifetime: int) -> str:
    """A signed token for the files of one model, to stand in their URLs. It is no bearer token: its
    audience is another."""
    return _sign(auth, {"sub": wallet, "aud": WEIGHTS_AUDIENCE, "model": model_id}, lifetime)


def verify_weights_token(auth: AuthSettings, token: str, model_id: str) -> str:
    """The wallet whose node was given the token for this model's files.

    Raises:
        TokenExpired: it was one of ours.
        TokenInvalid: it is not one of ours for this model's files.
    """
    claims = _verified(auth, token, ["sub", "aud", "model", "exp"], audience=WEIGHTS_AUDIENCE)
    if claims["model"] != model_id:
        raise TokenInvalid("This token is for another model.")
    return str(claims["sub"])


def verify_token(auth: AuthSettings, token: str) -> Principal:
    """Who holds the token. Whether a machine or a node still stands is not looked at.

    Raises:
        TokenExpired: it was one of ours.
        TokenInvalid: it is not one of ours.
    """
    claims = _verified(auth, token, ["sub", "kind", "exp"])
    kind = claims["kind"]
    return Principal(
        kind=kind,
        subject=claims["sub"],
        scopes=SCOPES.get(kind, frozenset()),
        machine_id=claims.get("machine", ""),
        registration=claims.get("registration", 1),
    )


def _verified(
    auth: AuthSettings, token: str, required: list[str], *, audience: str | None = None
) -> dict[str, Any]:
    if len(token) > MAX_TOKEN:
        raise TokenInvalid("This token is not one of ours.")
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            auth.jwt_secret.get_secret_value(),
            algorithms=[ALGORITHM],
            audience=audience,
            leeway=CLOCK_SKEW,
            options={"require": required},
        )
    except jwt.ExpiredSignatureError:
        raise TokenExpired("This token has expired. Log in or register again.") from None
    except (jwt.InvalidTokenError, RecursionError):
        raise TokenInvalid("This token is not one of ours.") from None
    return claims


def _sign(auth: AuthSettings, claims: Mapping[str, object], lifetime: int) -> str:
    now = int(time.time())
    secret = auth.jwt_secret.get_secret_value()
    return jwt.encode({**claims, "iat": now, "exp": now + lifetime}, secret, algorithm=ALGORITHM)
