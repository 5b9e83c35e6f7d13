"""The workers' crons settle by themselves, and chain and ledger agree."""

import os
import subprocess
import sys
from decimal import Decimal

from market.money import to_units
from stack.development_stack import DevelopmentStack
from tests.e2e.conftest import User, balance, query, wait_until


def test_providers_are_paid_what_the_ledger_says(stack: DevelopmentStack, user: User) -> None:
    user.generate("A generator")

    def nothing_is_owed() -> bool:
        return query(stack, "SELECT SUM(balance) FROM ledger_balances WHERE kind = 'owed'") == [
            "0.000000000000000000"
        ]

    wait_until(nothing_is_owed, "the settlement")
    for wallet in stack.wallets:
        earnings = user.http.get(f"/api/nodes/earnings/{wallet.address}").json()
        paid = Decimal(earnings["total_earned_far_exact"])
        assert Decimal(earnings["pending_payout_far_exact"]) == 0
        assert to_units(paid) == stack.chain.credit_of(stack.deployment, wallet.address) > 0
        assert balance(stack, wallet, "paid") == paid
    assert query(stack, "SELECT SUM(balance) FROM ledger_balances") == ["0.000000000000000000"]


def test_the_running_meshs_books_are_proved_against_the_chain(
    stack: DevelopmentStack, user: User
) -> None:
    user.generate("A dictionary")
    done = subprocess.run(
        [sys.executable, "-m", "cli.app", "ledger", "check"],
        env={
            **os.environ,
            "FAR_CONFIG": str(stack.plan.folder / "far_mesh.yaml"),
            "FAR_DATABASE_URL": stack.database_url,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Compared with the chain at block" in done.stdout
    assert "Nothing wrong." in done.stdout
