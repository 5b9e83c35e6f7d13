"""Tokens: whose they are, for how long, and what for."""

import time

import jwt
import pytest
from pydantic import SecretStr

from market.identity.errors import TokenExpired, TokenInvalid
from market.identity.tokens import (
    ALGORITHM,
    issue_machine_token,
    issue_node_token,
    issue_user_token,
    issue_weights_token,
    verify_token,
    verify_weights_token,
)
from market.settings.auth import AuthSettings
from mesh.clock_skew import CLOCK_SKEW

AUTH = AuthSettings(jwt_secret=SecretStr("a secret for the tests, long enough"))
WALLET = "0x" + "ab" * 20


def made(**claims: object) -> str:
    secret = AUTH.jwt_secret.get_secret_value()
    return jwt.encode({"sub": WALLET, "kind": "user"} | claims, secret, algorithm=ALGORITHM)


def test_the_clock_of_another_replica_may_be_some_seconds_off() -> None:
    now = time.time()
    ahead = made(exp=now + 600, iat=now + CLOCK_SKEW / 2, nbf=now + CLOCK_SKEW / 2)
    behind = made(exp=now - CLOCK_SKEW / 2)
    for token in (ahead, behind):
        assert verify_token(AUTH, token).subject == WALLET
    with pytest.raises(TokenExpired):
        verify_token(AUTH, made(exp=now - 2 * CLOCK_SKEW))
    with pytest.raises(TokenInvalid):
        verify_token(AUTH, made(exp=now + 600, nbf=now + 2 * CLOCK_SKEW))


def test_a_token_of_urls_opens_one_models_weights_and_nothing_else() -> None:
    token = issue_weights_token(AUTH, WALLET, "far/m", 60)
    assert verify_weights_token(AUTH, token, "far/m") == WALLET
    with pytest.raises(TokenInvalid):
        verify_weights_token(AUTH, token, "far/other")
    with pytest.raises(TokenInvalid):
        verify_token(AUTH, token)
    with pytest.raises(TokenExpired):
        verify_weights_token(AUTH, issue_weights_token(AUTH, WALLET, "far/m", -60), "far/m")


@pytest.mark.parametrize(
    "token",
    [
        issue_user_token(AUTH, WALLET),
        issue_machine_token(AUTH, WALLET, "machine_1"),
        issue_node_token(AUTH, "node_1", 1),
    ],
    ids=["user", "machine", "node"],
)
def test_no_other_token_stands_in_an_url_of_weights(token: str) -> None:
    assert verify_token(AUTH, token)
    with pytest.raises(TokenInvalid):
        verify_weights_token(AUTH, token, "far/m")
