"""A new user on the embedded stack (`far-mesh up`): wallet, FAR, deposit, login.

Prints the token that the API wants, so that a shell can keep it:

    TOKEN=$(.venv/bin/python docs/examples/login.py)
"""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from siwe import SiweMessage

from mesh.money import to_units
from stack.contracts import Deployment, DevelopmentChain

# The development chain begins empty, so these are the same at every start.
CONTRACTS = Deployment(
    token="0x8464135c8F25Da09e49BC8782676a84730C318bC",
    escrow="0x71C95911E9a5D330f4D621842EC243EE1343292e",
)


def fund(rpc_url: str, user: LocalAccount) -> None:
    """10 FAR from the development treasury, half of it deposited in the escrow."""
    chain = DevelopmentChain(rpc_url)
    chain.give(CONTRACTS, user.address, to_units(Decimal(10)))
    chain.deposit(CONTRACTS, user, to_units(Decimal(5)))


def login(api_url: str, user: LocalAccount) -> str:
    """Sign an EIP-4361 message with the wallet, and exchange it for a token."""
    with httpx.Client(base_url=api_url) as http:
        challenge = http.get("/api/auth/nonce").raise_for_status().json()
        now = datetime.now(UTC)
        message = SiweMessage(
            domain=challenge["domain"],
            address=user.address,
            statement="Log in to Far Mesh.",
            uri=api_url,
            version="1",
            chain_id=1,
            nonce=challenge["nonce"],
            issued_at=now.isoformat(timespec="seconds"),
            expiration_time=(now + timedelta(minutes=5)).isoformat(timespec="seconds"),
        ).prepare_message()
        signature = user.sign_message(encode_defunct(text=message)).signature.to_0x_hex()
        answer = http.post(
            "/api/auth/login",
            json={"wallet_address": user.address, "message": message, "signature": signature},
        )
        token: str = answer.raise_for_status().json()["token"]
        return token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--api", default="http://127.0.0.1:8000")
    parser.add_argument("--rpc", default="http://127.0.0.1:8549")
    urls = parser.parse_args()
    user: LocalAccount = Account.create()
    fund(urls.rpc, user)
    print(f"Wallet {user.address} has deposited 5 FAR.", file=sys.stderr)
    print(login(urls.api, user))


if __name__ == "__main__":
    main()
