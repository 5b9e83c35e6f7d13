"""A new user on the embedded stack (`far-mesh up`): wallet, FAR, deposit, cap, login.

Prints the token that the API wants once the deposit counts, so that a shell can keep it:

    TOKEN=$(.venv/bin/python docs/examples/login.py)
"""

import argparse
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import httpx
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

from market.money import to_units
from market.settings.deployment import Deployment
from mesh.signed_texts import sign_in_message
from stack.dev_chain_client import DevChainClient

GIVEN, DEPOSITED = Decimal(10), Decimal(5)
"""FAR."""

TIME_LIMIT = 60.0
"""Seconds that the platform gets to count the deposit; it takes one or two."""


def fund(rpc_url: str, contracts: Deployment, user: LocalAccount) -> None:
    """FAR from the development treasury, half of it deposited and free to be spent."""
    chain = DevChainClient(rpc_url)
    chain.give(contracts, user.address, to_units(GIVEN))
    chain.deposit(contracts, user, to_units(DEPOSITED))


def login(api_url: str, user: LocalAccount) -> str:
    """Sign an EIP-4361 message with the wallet, and exchange it for a token."""
    with httpx.Client(base_url=api_url) as http:
        challenge = http.get("/api/auth/nonce").raise_for_status().json()
        now = datetime.now(UTC)
        message = sign_in_message(
            domain=challenge["domain"],
            uri=api_url,
            wallet_address=user.address,
            statement="Log in to Far Mesh.",
            nonce=challenge["nonce"],
            issued_at=now.isoformat(timespec="seconds"),
            expires_at=(now + timedelta(minutes=5)).isoformat(timespec="seconds"),
        )
        signature = user.sign_message(encode_defunct(text=message)).signature.to_0x_hex()
        answer = http.post(
            "/api/auth/login",
            json={"wallet_address": user.address, "message": message, "signature": signature},
        )
        token: str = answer.raise_for_status().json()["token"]
        return token


def wait_until_counted(api_url: str, token: str) -> None:
    """Return once the platform lets all that was deposited be spent: it reads the deposit and the
    signed cap from the chain, each in a block of its own."""
    give_up = time.monotonic() + TIME_LIMIT
    with httpx.Client(base_url=api_url, headers={"Authorization": f"Bearer {token}"}) as http:
        while True:
            balance = http.get("/api/billing/balance").raise_for_status().json()
            spendable = (balance["available_far_exact"], balance["cap"]["left_far_exact"])
            if min(map(Decimal, spendable)) >= DEPOSITED:
                return
            if time.monotonic() > give_up:
                raise SystemExit(f"The deposit does not count after {TIME_LIMIT:.0f} s.")
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--api", default="http://127.0.0.1:8000")
    parser.add_argument("--rpc", default="http://127.0.0.1:8549")
    parser.add_argument(
        "--contracts",
        type=Path,
        default=Path(".far-mesh/contracts.json"),
        help="where `far-mesh up` wrote the contracts' addresses",
    )
    wanted = parser.parse_args()
    user: LocalAccount = Account.create()
    fund(wanted.rpc, Deployment.read(wanted.contracts), user)
    print(f"Wallet {user.address} has deposited {DEPOSITED} FAR.", file=sys.stderr)
    token = login(wanted.api, user)
    wait_until_counted(wanted.api, token)
    print(token)


if __name__ == "__main__":
    main()
