"""The examples of docs/provide.md, as they are written there."""

import runpy
import sys
from pathlib import Path

import pytest
from eth_account import Account

from market.escrow.reader import EscrowReader
from market.resources import Resources
from stack.dev_chain_client import development_account, write_keystore
from tests.conftest import Chain
from tests.support.chain.settled_money import PROVIDERS, SIGNER, rich_user, served
from workers.settlement import settle_due

CLAIM = Path(__file__).parents[2] / "docs" / "examples" / "claim.py"


async def test_a_provider_claims_what_he_earned(
    chain_resources: Resources,
    escrow: EscrowReader,
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owner, keyfile = Account.create(), tmp_path / "provider.json"
    write_keystore(owner, keyfile, "a password")
    chain.actor.fund_gas(development_account(1), owner.address)
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5, [owner.address.lower(), *PROVIDERS[1:]])
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    earned = chain.actor.credit_of(chain.deployment, owner.address)

    monkeypatch.setenv("FAR_NODE_PASSWORD", "a password")
    arguments = ["--rpc", chain.url, "--escrow", chain.deployment.escrow, "--keyfile", str(keyfile)]
    monkeypatch.setattr(sys, "argv", [str(CLAIM), *arguments])
    runpy.run_path(str(CLAIM), run_name="__main__")
    assert "Claimed" in capsys.readouterr().out
    token = chain.actor.contract("FarToken", chain.deployment.token)
    assert token.functions.balanceOf(owner.address).call() == earned > 0
    with pytest.raises(SystemExit, match="nothing to claim"):
        runpy.run_path(str(CLAIM), run_name="__main__")
