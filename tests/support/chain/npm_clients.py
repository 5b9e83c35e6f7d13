"""Wallets of the npm packages `ethers` and `viem`: the scripts in contracts/clients."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount

from market.escrow.artifacts import artifact
from market.escrow.cap_message import CAP_TYPES, cap_message
from market.settings.deployment import Deployment

CONTRACTS = Path(__file__).parents[3] / "contracts"
SCRIPTS = ("ethers", "viem")
TIME_LIMIT = 120.0
"""Seconds, on a machine that has much else to do."""

needs_npm = pytest.mark.skipif(
    shutil.which("node") is None
    or not all((CONTRACTS / "node_modules" / package).is_dir() for package in SCRIPTS),
    reason="ethers and viem are not installed: Node, and npm ci in contracts/, bring them",
)


def run_client(
    script: str, command: str, rpc: str, deployment: Deployment, **more: Any
) -> dict[str, Any]:
    """Run a script's command on a chain; returns what it saw. ``more`` is for the command alone;
    accounts are given by their keys."""
    message = cap_message(
        chain_id=deployment.chain_id,
        escrow=deployment.escrow,
        user=deployment.escrow,
        maximum=0,
        deadline=0,
        nonce=0,
    )
    given = {
        "rpc": rpc,
        "token": deployment.token,
        "escrow": deployment.escrow,
        "tokenAbi": artifact("FarToken")["abi"],
        "escrowAbi": artifact("InferenceEscrow")["abi"],
        "cap": {"domain": message["domain"], "types": CAP_TYPES},
    }
    for name, value in more.items():
        key = isinstance(value, LocalAccount)
        given[f"{name}Key" if key else name] = value.key.to_0x_hex() if key else value
    done = subprocess.run(
        ["node", str(CONTRACTS / "clients" / f"{script}.mjs"), command],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen
