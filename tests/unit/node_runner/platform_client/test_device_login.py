"""A machine asks to be let in: how it waits, and what it is told."""

import httpx
import pytest

from node_runner.machine.login_file import LoginFailed
from node_runner.platform_client.device_login import SLOW_DOWN, DevicePrompt, log_in
from node_runner.platform_client.errors import PlatformRefused
from tests.support.gateway.platform_server import TEMPORARY, Answer, PlatformServer, problem

DEVICE, TOKEN = "/api/machines/device", "/api/machines/token"
CODES = {
    "device_code": "secret",
    "user_code": "ABCD-EFGH",
    "verification_uri": "https://mesh.example/link",
    "verification_uri_complete": "https://mesh.example/link?code=ABCD-EFGH",
    "expires_in": 600,
    "interval": 5,
}
LET_IN = Answer(200, {"access_token": "t", "machine_id": "machine_1", "wallet_address": "0xab"})


def test_a_machine_polls_until_it_is_let_in(server: PlatformServer, http: httpx.Client) -> None:
    """At the interval, and more slowly where the platform asks for it."""
    server.answers[DEVICE] = [Answer(200, CODES)]
    server.answers[TOKEN] = [
        Answer(400, problem("authorization_pending")),
        TEMPORARY["an outage"],
        TEMPORARY["a login page"],
        Answer(429, problem("rate_limited"), {"Retry-After": "60"}),
        Answer(400, problem("slow_down")),
        Answer(400, problem("authorization_pending")),
        LET_IN,
    ]
    shown: list[DevicePrompt] = []
    waits: list[float] = []
    login = log_in(http, "attic", shown.append, wait=waits.append)
    assert [prompt.user_code for prompt in shown] == ["ABCD-EFGH"]
    assert waits == [5, 5, 5, 60, 5 + SLOW_DOWN, 5 + SLOW_DOWN]
    assert (login.machine_id, login.token, login.wallet_address) == ("machine_1", "t", "0xab")
    assert login.discovery == server.url


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("access_denied", LoginFailed),
        ("expired_token", LoginFailed),
        ("invalid_client", PlatformRefused),
    ],
)
def test_a_refusal_ends_the_polling(
    server: PlatformServer, http: httpx.Client, code: str, error: type[Exception]
) -> None:
    server.answers[DEVICE] = [Answer(200, CODES)]
    server.answers[TOKEN] = [Answer(400, problem(code))]
    with pytest.raises(error):
        log_in(http, "attic", lambda prompt: None, wait=lambda seconds: None)


def test_nobody_lets_the_machine_in(server: PlatformServer, http: httpx.Client) -> None:
    server.answers[DEVICE] = [Answer(200, CODES | {"expires_in": 0, "interval": 0})]
    with pytest.raises(LoginFailed, match="before the code expired"):
        log_in(http, "attic", lambda prompt: None)
