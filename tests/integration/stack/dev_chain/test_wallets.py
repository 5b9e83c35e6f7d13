"""Wallets pay and are paid: ethers and viem, on the embedded chain as on anvil."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from eth_account import Account
from sqlalchemy import select

from market import ledger
from market.escrow.event_reader import EscrowEventReader
from market.escrow.reader import EscrowReader
from market.ledger.tables import SpendingCap
from market.resources import Resources
from stack.dev_chain_client import DevChainClient, development_account, write_keystore
from tests.conftest import OPERATOR_PASSWORD, Chain
from tests.support.chain.branching import anvil, running_anvil
from tests.support.chain.manual_chain import ask, needs_anvil
from tests.support.chain.npm_clients import SCRIPTS, needs_npm, run_client
from tests.support.chain.settled_money import OPERATOR, PROVIDERS, SIGNER, served
from tests.support.gateway.api import open_gateway
from workers.chain_indexer.indexer import index_events
from workers.settlement import settle_due

FAR = 10**18
DONE = {"status": 1, "type": 2}
TRANSFER = DONE | {"gasUsed": "21000"}
TOO_MUCH = {
    "reason": "reverted",
    "name": "InferenceEscrow_InsufficientDeposit",
    "args": [str(3 * FAR), str(10**30)],
}

DEPOSITED = {
    "chainId": "31337",
    "legacy": TRANSFER | {"type": 0},
    "accessList": TRANSFER | {"type": 1, "gasUsed": "23400"},
    "dynamic": TRANSFER,
    "transfer": DONE,
    "approve": DONE,
    "deposit": DONE,
    "permit": DONE,
    "raiseCap": DONE,
    "told": {"owner": True, "maximum": str(3 * FAR)},
    "state": {"deposit": str(3 * FAR), "cap": str(3 * FAR), "debited": "0"},
    "deposits": [str(FAR), str(2 * FAR)],
    "balanceBefore": str(FAR),
    "revertedEstimate": TOO_MUCH,
    "revertedCall": TOO_MUCH,
    "revertedTransaction": {"status": 0, "type": 2},
    "usedNonce": {"reason": "nonce too low"},
    "noCoins": {"reason": "insufficient funds"},
    "order": {"waited": True, "status": [1, 1], "nonces": 2},
    "unlocked": TRANSFER,
    "unlockedText": True,
}
"""What a user's wallet sees, whichever library it is written with and on whichever chain."""


@pytest.fixture(
    params=["embedded", pytest.param("anvil", marks=[needs_anvil, pytest.mark.slow])],
)
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    """The embedded chain, or anvil, with both contracts."""
    keyfile = tmp_path / "operator.json"
    write_keystore(OPERATOR, keyfile, OPERATOR_PASSWORD)
    if request.param == "embedded":
        url = request.getfixturevalue("chain_url")
        actor = DevChainClient(url)
        yield Chain(url, actor, actor.deploy(OPERATOR.address), keyfile)
        return
    with running_anvil(anvil() or "") as url:
        actor = DevChainClient(url)
        ask(actor, "evm_setAutomine", True)
        yield Chain(url, actor, actor.deploy(OPERATOR.address), keyfile)


@needs_npm
@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_wallet_deposits_pays_verifies_its_receipt_and_claims(
    script: str, chain: Chain, chain_resources: Resources, escrow: EscrowReader
) -> None:
    payments = chain_resources.settings.payments
    payments.first_block, payments.finalized_tag = chain.deployment.block, False
    user, owner, poor = (Account.create() for _ in range(3))
    parties = {"treasury": development_account(1), "user": user, "poor": poor}
    assert run_client(script, "deposit", chain.url, chain.deployment, **parties) == DEPOSITED

    async with EscrowEventReader.from_settings(payments) as reader:
        await index_events(chain_resources, reader)
    async with chain_resources.sessions() as db:
        wallet = user.address.lower()
        assert await ledger.balance(db, ledger.available(wallet)) == Decimal(3)
        cap = await db.scalar(select(SpendingCap).where(SpendingCap.wallet == wallet))
        assert cap is not None
        assert cap.maximum == Decimal(3)

    providers = [owner.address.lower(), *PROVIDERS[1:]]
    job = await served(chain_resources, user, 7, providers)
    assert await settle_due(chain_resources, escrow, SIGNER) is not None
    async with open_gateway(chain_resources.settings) as gateway:
        answer = await gateway.client.get(
            f"/api/inference/jobs/{job.request_id}/receipt", headers=gateway.login(wallet)
        )
    chain.actor.fund_gas(development_account(1), owner.address)
    lines = len(providers) + 1  # one for the fee
    claimed = run_client(
        script, "claim", chain.url, chain.deployment, owner=owner, receipt=answer.json()
    )
    assert claimed == {
        "proven": [True] * lines,
        "forged": False,
        "root": True,
        "block": True,
        "settled": True,
        "claimed": 1,
        "received": True,
        "again": {"reason": "reverted", "name": "InferenceEscrow_NothingToClaim", "args": []},
    }
