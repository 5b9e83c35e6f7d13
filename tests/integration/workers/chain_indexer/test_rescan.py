"""An index that lacks an event is repaired, exactly and once."""

import asyncio
import base64
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from market import ledger
from market.escrow.event_reader import EscrowEventReader
from market.resources import Resources
from tests.support.chain.escrow import FAR, Actions, assert_ledger_agrees, killed_at, left
from tests.support.factories import session
from tests.support.some_slow import some_slow
from workers.chain_indexer.indexer import index_events
from workers.chain_indexer.rescan import rescan


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the reader lose the events of a name, or none again."""
    complete = EscrowEventReader._complete

    def lose(name: str) -> None:
        async def some(*args: Any) -> Any:
            return [event for event in await complete(*args) if event.name != name]

        monkeypatch.setattr(EscrowEventReader, "_complete", some)

    return lose


async def test_what_is_right_stays(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=3)
    await index_events(chain_resources, reader)
    found = await rescan(chain_resources, reader, 0)
    assert (found.differs_at, found.reversed, found.applied) == (None, 0, 0)
    assert await left(chain_resources, user) == (3, 0, 3)


@pytest.mark.parametrize(
    "name", some_slow(["Deposited", "CapRaised", "WithdrawalRequested"], quick=["Deposited"])
)
async def test_a_lost_event_is_found(
    chain_resources: Resources,
    actions: Actions,
    reader: EscrowEventReader,
    losing: Callable[[str], None],
    name: str,
) -> None:
    """What was held meanwhile stays held."""
    before = actions.user(far=1)
    await index_events(chain_resources, reader)
    other = actions.user(far=4)
    await index_events(chain_resources, reader)
    wallet = before.address.lower()
    async with chain_resources.sessions.begin() as db:
        job = session(user=wallet, price=Decimal("0.02"), max_tokens=10)
        db.add(job)
        await ledger.hold(db, job=job.request_id, wallet=wallet, amount=job.hold_far)
    losing(name)
    user = actions.user(far=3)
    there: tuple[int, int, int] = (3, 0, 3)
    if name == "WithdrawalRequested":
        actions.call(user, "requestWithdrawal", FAR)
        there = (2, 1, 3)
    await index_events(chain_resources, reader)
    assert await left(chain_resources, user) != there
    losing("none")
    assert (await rescan(chain_resources, reader, 0)).differs_at is not None
    assert await left(chain_resources, user) == there
    assert await left(chain_resources, other) == (4, 0, 4)
    assert (await left(chain_resources, before))[0] == 1 - job.hold_far
    assert (await rescan(chain_resources, reader, 0)).differs_at is None
    await assert_ledger_agrees(chain_resources, reader)


async def test_a_rescan_that_is_killed_is_run_again(
    chain_resources: Resources,
    actions: Actions,
    reader: EscrowEventReader,
    losing: Callable[[str], None],
) -> None:
    losing("Deposited")
    user = actions.user(far=3)
    await index_events(chain_resources, reader)
    losing("none")
    boundary = 0
    while await killed_at(boundary, chain_resources, lambda: rescan(chain_resources, reader, 0)):
        boundary += 7
    await rescan(chain_resources, reader, 0)
    await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (3, 0, 3)
    await assert_ledger_agrees(chain_resources, reader)


@pytest.mark.usefixtures("log_settings")
async def test_the_command_says_what_it_found(
    chain_resources: Resources,
    actions: Actions,
    reader: EscrowEventReader,
    losing: Callable[[str], None],
) -> None:
    losing("Deposited")
    actions.user(far=3)
    await index_events(chain_resources, reader)
    losing("none")
    settings = chain_resources.settings
    environment = {
        "FAR_DATABASE_URL": settings.database_url,
        "FAR_REDIS_URL": settings.redis_url,
        "FAR_PAYMENTS__RPC_URLS": actions.chain.url,
        "FAR_PAYMENTS__RPC_MAX_AGE": "0",
        "FAR_PAYMENTS__ESCROW_CONTRACT": actions.chain.deployment.escrow,
        "FAR_PAYMENTS__FIRST_BLOCK": str(actions.chain.deployment.block),
        "FAR_PAYMENTS__FINALIZED_TAG": "false",
        "FAR_PAYMENTS__CONFIRMATIONS": "0",
        "FAR_AUTH__JWT_SECRET": "a secret for the tests, long enough",
        "FAR_GENERATION__PROMPT_KEY": base64.b64encode(bytes(32)).decode(),
    }

    def run() -> str:
        done = CliRunner().invoke(app, ["ledger", "rescan"], env=environment)
        assert done.exit_code == 0, done.output
        return done.output

    assert "differed" in await asyncio.to_thread(run)
    assert "Nothing differs" in await asyncio.to_thread(run)
    await assert_ledger_agrees(chain_resources, reader)
