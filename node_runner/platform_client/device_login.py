"""Device login (RFC 8628) from the machine's side."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from mesh import signed_texts
from node_runner.machine import keystore
from node_runner.machine.login_file import LoginFailed, MachineLogin
from node_runner.platform_client.errors import PlatformRefused, PlatformUnreachable
from node_runner.platform_client.http import request
from node_runner.platform_client.signing import check_name

SLOW_DOWN = 5.0
"""Seconds to wait longer when the platform says `slow_down` (RFC 8628, 3.5)."""

DEVICE_PATH, TOKEN_PATH = "/api/machines/device", "/api/machines/token"

CODE_FIELDS = (
    "device_code",
    "user_code",
    "verification_uri",
    "verification_uri_complete",
    "expires_in",
    "interval",
)
TOKEN_FIELDS = ("access_token", "machine_id", "wallet_address")
MESSAGE_FIELDS = ("domain", "uri", "nonce", "issued_at", "expires_at", "message")
"""Fields of the platform's answers."""

NO_SUCH_TOKEN = (401, 403, 404)
"""Statuses by which the platform says that the machine's token is not valid, or no longer."""


@dataclass(frozen=True, slots=True)
class DevicePrompt:
    """The code and the URL that the owner is shown. ``expires_in``: seconds."""

    url: str
    url_with_code: str
    user_code: str
    expires_in: int


def log_in(
    http: httpx.Client,
    machine: str,
    show: Callable[[DevicePrompt], None],
    *,
    wait: Callable[[float], None] = time.sleep,
) -> MachineLogin:
    """Show a code, and wait until the owner's wallet has let this machine in.

    Raises:
        LoginFailed: he said no, or the time is up.
        PlatformError: the platform refuses, or does not answer at all.
    """
    codes = request(http, "POST", DEVICE_PATH, {"machine": machine}, required=CODE_FIELDS)
    show(
        DevicePrompt(
            url=codes["verification_uri"],
            url_with_code=codes["verification_uri_complete"],
            user_code=codes["user_code"],
            expires_in=codes["expires_in"],
        )
    )
    interval = float(codes["interval"])
    deadline = time.monotonic() + codes["expires_in"] + interval
    poll = {"device_code": codes["device_code"]}
    while time.monotonic() < deadline:
        delay = interval
        try:
            answer = request(http, "POST", TOKEN_PATH, poll, required=TOKEN_FIELDS)
        except PlatformUnreachable as error:  # it may be back before the code expires
            delay = max(interval, error.retry_after)
        except PlatformRefused as error:
            delay = interval = _next_interval(error, interval)
        else:
            return MachineLogin(
                discovery=str(http.base_url).rstrip("/"),
                wallet_address=answer["wallet_address"],
                machine=machine,
                machine_id=answer["machine_id"],
                token=answer["access_token"],
            )
        wait(delay)
    raise LoginFailed("Nobody let this machine in before the code expired. Try again.")


def _next_interval(error: PlatformRefused, interval: float) -> float:
    """Seconds until the next poll.

    Raises:
        LoginFailed: the owner said no, or the time is up.
        PlatformRefused: for another reason.
    """
    match error.code:
        case "authorization_pending":
            return interval
        case "slow_down":
            return interval + SLOW_DOWN
        case "access_denied":
            raise LoginFailed("The owner did not let this machine in.")
        case "expired_token":
            raise LoginFailed("The code has expired. Try again.")
        case _:
            raise error


def approve(http: httpx.Client, user_code: str, machine: str, private_key: bytes) -> None:
    """Let this machine in by a key that lies here: what the page does with a wallet.

    Raises:
        LoginFailed: the platform asks to sign something else than it should.
        PlatformError: the platform refuses, or does not answer.
    """
    wallet = keystore.wallet_address(private_key)
    approval = {"user_code": user_code, "wallet_address": wallet}
    answer = request(http, "POST", "/api/machines/message", approval, required=MESSAGE_FIELDS)
    check_name(http, answer["domain"])
    expected = signed_texts.machine_message(
        domain=answer["domain"],
        uri=answer["uri"],
        wallet_address=wallet,
        machine=machine,
        user_code=user_code,
        nonce=answer["nonce"],
        issued_at=answer["issued_at"],
        expires_at=answer["expires_at"],
    )
    if answer["message"] != expected:
        raise LoginFailed("The platform wants something else signed than a login. Not done.")
    signature = signed_texts.sign(expected, private_key)
    request(http, "POST", "/api/machines/approve", {**approval, "signature": signature})


def revoke(login: MachineLogin, http: httpx.Client) -> bool:
    """Have the platform take a machine's token back. Returns whether the token was valid until now.

    Raises:
        PlatformError: the token is as good as before.
    """
    try:
        request(http, "DELETE", f"/api/machines/{login.machine_id}", token=login.token)
    except PlatformRefused as error:
        if error.status not in NO_SUCH_TOKEN:
            raise
        return False
    return True
