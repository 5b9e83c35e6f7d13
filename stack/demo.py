"""The demo, as a user sees it: a wallet, a deposit, a login, a prompt, and who is paid for it."""

import datetime as dt
import json
import time
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount
from rich.console import Console
from rich.table import Table

from market.money import format_exact, from_units, to_units
from mesh.signed_texts import sign_in_message
from stack.development_stack import DevelopmentStack
from stack.servers import StackError

GIVEN = to_units(Decimal(10))
DEPOSITED = to_units(Decimal(5))

DEMO_TIMEOUT = 60.0
"""Seconds to wait for a deposit or a settlement."""

OK = "[green]✓[/]"


class DemoError(StackError):
    """Something that should have worked did not."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What the user's clock showed."""

    first_token: float
    total: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """After the first token: what streaming feels like."""
        return (self.tokens - 1) / max(self.total - self.first_token, 1e-9)


def run(stack: DevelopmentStack, console: Console, *, prompt: str, max_tokens: int) -> None:
    """The whole path, from a prompt to paid providers.

    Raises:
        DemoError: a step did not do what it promises.
    """
    user: LocalAccount = Account.create()
    with httpx.Client(base_url=stack.plan.api_url, timeout=60) as http:
        with console.status("Giving a new wallet some FAR, and depositing half of it"):
            stack.chain.give(stack.deployment, user.address, GIVEN)
            stack.chain.deposit(stack.deployment, user, DEPOSITED)
        console.print(f"{OK} wallet {user.address}: got 10 FAR, deposited 5")
        login(http, user)
        console.print(f"{OK} logged in with the wallet (EIP-4361)")
        with console.status("Waiting for the deposit to be credited"):
            job, timing = generate(http, console, prompt=prompt, max_tokens=max_tokens)
        _show_generation(console, job, timing)
        with console.status("Settling on-chain"):
            settled = _wait_for_settlement(stack, http)
        _show_settlement(stack, console, settled)


def login(http: httpx.Client, user: LocalAccount) -> None:
    """Sign in with the wallet; the client is authenticated from then on."""
    challenge = http.get("/api/auth/nonce").raise_for_status().json()
    now = dt.datetime.now(dt.UTC)
    message = sign_in_message(
        domain=challenge["domain"],
        uri=str(http.base_url),
        wallet_address=user.address,
        statement="Log in to Far Mesh.",
        nonce=challenge["nonce"],
        issued_at=now.isoformat(timespec="seconds"),
        expires_at=(now + dt.timedelta(minutes=5)).isoformat(timespec="seconds"),
    )
    signed = user.sign_message(encode_defunct(text=message))
    answer = http.post(
        "/api/auth/login",
        json={
            "wallet_address": user.address,
            "message": message,
            "signature": signed.signature.to_0x_hex(),
        },
    )
    http.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['token']}"


def generate(
    http: httpx.Client, console: Console, *, prompt: str, max_tokens: int
) -> tuple[dict[str, Any], Timing]:
    """Stream one generation to the console; returns the job and the user's timing."""
    models = http.get("/api/inference/models").json()["models"]
    body = {
        "model_id": models[0]["id"],
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 2,
        "stream": True,
    }
    done, timing = _stream(http, console, body, prompt)
    if done.get("error"):
        raise DemoError(f"The generation failed: {done['error']['detail']}")
    job = http.get(f"/api/inference/jobs/{done['request_id']}").raise_for_status().json()
    return job, timing


def _stream(
    http: httpx.Client, console: Console, body: dict[str, Any], prompt: str
) -> tuple[dict[str, Any], Timing]:
    give_up = time.monotonic() + DEMO_TIMEOUT
    while True:
        began = time.monotonic()
        first, tokens = 0.0, 0
        with http.stream("POST", "/api/inference/distributed/generate", json=body) as answer:
            if answer.status_code == httpx.codes.PAYMENT_REQUIRED and began < give_up:
                time.sleep(0.2)  # the deposit is not credited yet
                continue
            if answer.is_error:
                answer.read()
                raise DemoError(f"The API refused the prompt: {answer.text}")
            console.print(f"\n[bold]{prompt}[/]", end="", markup=True)
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                data = json.loads(line.removeprefix("data: "))
                if data.get("done"):
                    console.print("\n")
                    return data, Timing(first, time.monotonic() - began, tokens)
                first = first or time.monotonic() - began
                tokens += 1
                console.print(data["token"], end="", markup=False)
        raise DemoError("The stream ended before the generation did.")


def _show_generation(console: Console, job: dict[str, Any], timing: Timing) -> None:
    console.print(
        f"{OK} {timing.tokens} tokens; first after {timing.first_token * 1000:.0f} ms, then "
        f"{timing.tokens_per_second:.0f} tokens/s"
    )
    console.print(
        f"{OK} price {job['price_per_token_far_exact']} FAR a token, "
        f"{job['price_per_prompt_token_far_exact']} FAR a token of the prompt\n"
        f"{OK} cost {job['cost_far_exact']} FAR (held {job['hold_far_exact']}, the rest returned)\n"
    )
    table = Table("node", "layers", "tokens", "share in FAR", title="Who served it")
    for part in job["nodes_used"]:
        layers = part["layers"]
        table.add_row(
            part["node_id"],
            f"{layers[0]} to {layers[-1]}" + (" + edge" if layers[0] == 0 else ""),
            str(part["tokens_contributed"]),
            part["payment_far_exact"],
        )
    table.add_row("platform fee", "", "", job["platform_fee_far_exact"])
    console.print(table)
    parts = sum(Decimal(part["payment_far_exact"]) for part in job["nodes_used"])
    if parts + Decimal(job["platform_fee_far_exact"]) != Decimal(job["cost_far_exact"]):
        raise DemoError("The shares do not add up to the cost.")
    console.print(f"{OK} shares and fee add up to the cost, to the last unit\n")


def _wait_for_settlement(stack: DevelopmentStack, http: httpx.Client) -> dict[str, Decimal]:
    """What the ledger says each provider was paid, once nothing is pending."""
    give_up = time.monotonic() + DEMO_TIMEOUT
    while True:
        paid: dict[str, Decimal] = {}
        for wallet in stack.wallets:
            earnings = http.get(f"/api/nodes/earnings/{wallet.address}").raise_for_status().json()
            pending = Decimal(earnings["pending_payout_far_exact"])
            if pending == 0:
                paid[wallet.address] = Decimal(earnings["total_earned_far_exact"])
        if len(paid) == len(stack.wallets):
            return paid
        if time.monotonic() > give_up:
            raise DemoError("The settlement did not come through.")
        time.sleep(0.2)


def _show_settlement(stack: DevelopmentStack, console: Console, paid: dict[str, Decimal]) -> None:
    table = Table("provider", "ledger: paid", "on-chain: claimable", "", title="Settled on-chain")
    equal = True
    for wallet, amount in paid.items():
        credit = from_units(stack.chain.credit_of(stack.deployment, wallet))
        equal = equal and credit == amount
        table.add_row(
            _short(wallet),
            format_exact(amount),
            format_exact(credit),
            OK if credit == amount else "[red]✗[/]",
        )
    console.print(table)
    if not equal:
        raise DemoError("The ledger and the chain disagree.")
    console.print(f"{OK} ledger and chain agree to the last unit\n")


def _short(wallet: str) -> str:
    return f"{wallet[:8]}…{wallet[-6:]}"
