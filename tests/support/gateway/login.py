"""Logins with a wallet, over HTTP."""

import datetime as dt
from typing import Any

import httpx
from eth_account.messages import encode_defunct

from tests.support.gateway.api import (
    USER,
    Gateway,
)


def instant(*, minutes: float) -> str:
    """A time from now as EIP-4361 writes it."""
    then = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)
    return then.strftime("%Y-%m-%dT%H:%M:%SZ")


def login_message(nonce: str, **changes: str | None) -> str:
    """What a wallet shows its owner; a field that is None is left out."""
    fields: dict[str, str | None] = {
        "domain": "test",
        "address": USER.address,
        "statement": "Log in to Far Mesh.",
        "Expiration Time": instant(minutes=5),
        "Not Before": None,
        "Nonce": nonce,
    } | changes
    lines = [
        f"{fields['domain']} wants you to sign in with your Ethereum account:",
        fields["address"],
        "",
        fields["statement"],
        "",
        "URI: https://test/",
        "Version: 1",
        "Chain ID: 56",
        f"Nonce: {fields['Nonce']}",
        f"Issued At: {instant(minutes=0)}",
    ]
    lines += [
        f"{name}: {fields[name]}" for name in ("Expiration Time", "Not Before") if fields[name]
    ]
    return "\n".join(str(line) for line in lines)


def signed(message: str, account: Any = USER) -> str:
    return "0x" + bytes(account.sign_message(encode_defunct(text=message)).signature).hex()


async def fresh_nonce(gateway: Gateway) -> str:
    nonce: str = (await gateway.client.get("/api/auth/nonce")).json()["nonce"]
    return nonce


async def login(
    gateway: Gateway,
    message: str,
    *,
    signature: str | None = None,
    wallet_address: str = USER.address,
) -> httpx.Response:
    body = {
        "wallet_address": wallet_address,
        "message": message,
        "signature": signed(message) if signature is None else signature,
    }
    return await gateway.client.post("/api/auth/login", json=body)
