"""`far-mesh settle`: what the next batch would be, and going on after a pause."""

import asyncio
import os
import subprocess
import sys

import pytest

from market.escrow.reader import EscrowReader
from market.resources import Resources
from market.settlement.tables import SettlementPause
from tests.conftest import OPERATOR_PASSWORD, Chain
from tests.support.chain.settled_money import (
    POOR,
    SIGNER,
    ago,
    batches,
    change,
    poor_user,
    rich_user,
    served,
    transactions,
)
from workers.settlement import settle_due
from workers.settlement.alerts import pauses
from workers.settlement.preview import describe, make_preview


async def test_a_dry_run_says_what_would_happen_and_does_nothing(
    chain_resources: Resources, escrow: EscrowReader, chain: Chain
) -> None:
    user = await rich_user(chain_resources, chain)
    for _ in range(2):
        await served(chain_resources, user, 5)
    await served(chain_resources, await poor_user(chain_resources), 7)
    held = await served(chain_resources, user, 3)
    await change(chain_resources, held, withheld_until=ago(-60), withheld_reason="audit")
    height = chain.actor.web3.eth.block_number
    preview = await make_preview(chain_resources, escrow, SIGNER)
    said = "\n".join(describe(preview))
    assert "generations 2" in said
    assert f"user {user.address.lower()} pays 0.001 FAR" in said
    assert "excluded: 1 generations, 0.0007 FAR: InsufficientDeposit: " + POOR in said
    assert "excluded: 1 generations, 0.0003 FAR: withheld (audit)" in said
    assert preview.planned is not None
    assert await batches(chain_resources) == []
    assert chain.actor.web3.eth.block_number == height
    # What it foretold is what happens.
    batch = await settle_due(chain_resources, escrow, SIGNER)
    assert batch == preview.planned.content.id
    [signed] = await transactions(chain_resources)
    assert signed.gas == preview.gas


@pytest.mark.slow
async def test_the_command_line_plans_and_resumes(
    chain_resources: Resources, chain: Chain, database_url: str, redis_url: str
) -> None:
    user = await rich_user(chain_resources, chain)
    await served(chain_resources, user, 5)
    async with chain_resources.sessions.begin() as db:
        db.add(SettlementPause(reason="reverted", detail="by a test"))
    environment = os.environ | {
        "FAR_CONFIG": os.devnull,
        "FAR_DATABASE_URL": database_url,
        "FAR_REDIS_URL": redis_url,
        "FAR_GENERATION__PROMPT_KEY": "A" * 43 + "=",
        "FAR_PAYMENTS__ESCROW_CONTRACT": chain.deployment.escrow,
        "FAR_PAYMENTS__RPC_URLS": chain.url,
        "FAR_PAYMENTS__RPC_MAX_AGE": "0",
        "FAR_PAYMENTS__RELEASE_DELAY": "0",
        "FAR_PAYMENTS__SETTLE_AMOUNT": "0",
        "FAR_PAYMENTS__OPERATOR_KEYFILE": str(chain.keyfile),
        "FAR_PAYMENTS__OPERATOR_PASSWORD": OPERATOR_PASSWORD,
    }

    def far_mesh(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli.app", "settle", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    planned = await asyncio.to_thread(far_mesh, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "Settlement is PAUSED (reverted): by a test" in planned.stdout
    assert "generations 1" in planned.stdout
    resumed = await asyncio.to_thread(far_mesh, "--resume")
    assert "Settlement goes on. It was paused (reverted): by a test" in resumed.stdout
    assert await pauses.current_pause(chain_resources.sessions) is None
    neither = await asyncio.to_thread(far_mesh)
    assert neither.returncode == 2
