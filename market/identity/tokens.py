"""Bearer tokens (JWT) of users, machines and nodes: issued, and verified."""

import time
from collections.abc import Mapping

import jwt

from market.identity.errors import TokenExpired, TokenInvalid
from market.identity.principal import SCOPES, Principal
from market.settings.auth import AuthSettings

ALGORITHM = "HS256"

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


def verify_token(auth: AuthSettings, token: str) -> Principal:
    """Who holds the token. Whether a machine or a node still stands is not looked at.

    Raises:
        TokenExpired: it was one of ours.
        TokenInvalid: it is not one of ours.
    """
    if len(token) > MAX_TOKEN:
        raise TokenInvalid("This token is not one of ours.")
    try:
        claims = jwt.decode(
            token,
            auth.jwt_secret.get_secret_value(),
            algorithms=[ALGORITHM],
            options={"require": ["sub", "kind", "exp"]},
        )
    except jwt.ExpiredSignatureError:
        raise TokenExpired("This token has expired. Log in or register again.") from None
    except (jwt.InvalidTokenError, RecursionError):
        raise TokenInvalid("This token is not one of ours.") from None
    kind = claims["kind"]
    return Principal(
        kind=kind,
        subject=claims["sub"],
        scopes=SCOPES.get(kind, frozenset()),
        machine_id=claims.get("machine", ""),
        registration=claims.get("registration", 1),
    )


def _sign(auth: AuthSettings, claims: Mapping[str, object], lifetime: int) -> str:
    now = int(time.time())
    secret = auth.jwt_secret.get_secret_value()
    return jwt.encode({**claims, "iat": now, "exp": now + lifetime}, secret, algorithm=ALGORITHM)
