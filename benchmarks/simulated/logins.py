"""Wallets that log in again and again, and how long that takes them."""

import asyncio
import datetime as dt
import itertools
import time

import httpx
from eth_account import Account

from mesh.signed_texts import sign, sign_in_message

REQUEST_TIMEOUT = 60.0
"""Seconds for one answer."""


class WalletLogins:
    """
    Attributes:
        times_ms: Milliseconds of each login: of its two requests, without the wallet's signing.
        lost: Reasons of those that failed.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT)
        self._begun: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self.times_ms: list[float] = []
        self.lost: list[str] = []

    async def run(self, interval: float) -> None:
        """Begin a login each ``interval`` seconds, until cancelled."""
        while True:
            task = asyncio.create_task(self._log_in())
            self._begun.add(task)
            task.add_done_callback(self._begun.discard)
            await asyncio.sleep(interval)

    async def finish(self) -> None:
        """Wait for all logins that have begun; no more can begin."""
        await asyncio.gather(*self._begun)
        await self._http.aclose()

    async def _log_in(self) -> None:
        number = next(self._numbers)
        # As a proxy passes callers on: each from an address of its own.
        headers = {"X-Forwarded-For": f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"}
        wallet = Account.create()
        try:
            began = time.perf_counter()
            answer = await self._http.get("/api/auth/nonce", headers=headers)
            challenge = answer.raise_for_status().json()
            asked = time.perf_counter() - began
            now = dt.datetime.now(dt.UTC)
            message = sign_in_message(
                domain=challenge["domain"],
                uri=str(self._http.base_url),
                wallet_address=wallet.address,
                statement="Log in to Far Mesh.",
                nonce=challenge["nonce"],
                issued_at=now.isoformat(timespec="seconds"),
                expires_at=(now + dt.timedelta(minutes=5)).isoformat(timespec="seconds"),
            )
            body = {
                "wallet_address": wallet.address,
                "message": message,
                "signature": sign(message, bytes(wallet.key)),
            }
            began = time.perf_counter()
            answer = await self._http.post("/api/auth/login", json=body, headers=headers)
            answer.raise_for_status()
            self.times_ms.append(1000 * (asked + time.perf_counter() - began))
        except httpx.HTTPError as error:
            self.lost.append(str(error) or type(error).__name__)
