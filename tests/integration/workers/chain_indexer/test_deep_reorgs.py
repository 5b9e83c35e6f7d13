"""The indexer goes back where the chain does."""

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from market import ledger
from market.chain.errors import ChainError, ChainMoved
from market.chain.failover_rpc import Endpoint
from market.escrow.event_reader import EscrowEventReader
from market.escrow.tables import ChainBlock
from market.resources import Resources
from tests.support.escrow import FAR, Actions, assert_ledger_agrees, left, stored
from tests.support.factories import session
from workers.chain_indexer.indexer import follow_chain, index_events


async def test_a_deposit_that_a_deep_reorganisation_takes_back(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    """It had counted, and was spent in part. When it comes again, what was spent stays spent."""
    mark = actions.ask("evm_snapshot")
    user = actions.user(far=5)
    wallet = user.address.lower()
    await index_events(chain_resources, reader)
    async with chain_resources.sessions.begin() as db:
        job = session(user=wallet, price=Decimal("0.02"), max_tokens=100)
        db.add(job)
        await ledger.hold(db, job=job.request_id, wallet=wallet, amount=job.hold_far)
    actions.ask("evm_revert", mark)
    actions.pass_by(8)
    with capture_logs() as logs:
        await index_events(chain_resources, reader)
    assert {"chain_reorganised", "chain_event_reverted"} <= {entry["event"] for entry in logs}
    assert await left(chain_resources, user) == (0, 0, 0)
    async with chain_resources.sessions() as db:
        assert await ledger.balance(db, ledger.shortfall(wallet)) == -2
        assert await ledger.balance(db, ledger.clearing()) == 0

    actions.chain.actor.give(actions.chain.deployment, user.address, 5 * FAR)
    actions.chain.actor.deposit(actions.chain.deployment, user, 5 * FAR)
    await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (3, 0, 5)
    async with chain_resources.sessions() as db:
        assert await ledger.balance(db, ledger.shortfall(wallet)) == 0
    await assert_ledger_agrees(chain_resources, reader)


async def test_a_chain_that_flips_back_counts_once(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    """The same blocks twice, with another branch between."""
    user = actions.user(far=5)
    await index_events(chain_resources, reader)
    first = await reader.hashes([await reader.chain.head()])
    async with chain_resources.sessions.begin() as db:  # what a look at the other branch left
        await db.execute(
            update(ChainBlock).where(ChainBlock.number.in_(first)).values(hash="0x" + "77" * 32)
        )
    for _ in range(2):
        await index_events(chain_resources, reader)
        assert await left(chain_resources, user) == (5, 0, 5)
    statuses = {row.status for row in await stored(chain_resources, "Deposited")}
    assert statuses == {"applied"}
    await assert_ledger_agrees(chain_resources, reader)


async def test_another_chain_reverses_nothing(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    user = actions.user(far=5)
    await index_events(chain_resources, reader)
    async with chain_resources.sessions.begin() as db:
        await db.execute(update(ChainBlock).values(hash="0x" + "77" * 32))
    with pytest.raises(ChainError, match="None of our blocks"):
        await index_events(chain_resources, reader)
    with capture_logs() as logs:
        await follow_chain({"resources": chain_resources})
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["chain_unread"]
    assert await left(chain_resources, user) == (5, 0, 5)


async def test_a_node_that_is_behind_reverses_nothing(
    chain_resources: Resources, actions: Actions, reader: EscrowEventReader
) -> None:
    mark = actions.ask("evm_snapshot")
    user = actions.user(far=5)
    await index_events(chain_resources, reader)
    actions.ask("evm_revert", mark)
    with pytest.raises(ChainMoved):
        await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (5, 0, 5)


async def test_a_chain_that_moves_while_it_is_read_is_read_again(
    chain_resources: Resources,
    actions: Actions,
    reader: EscrowEventReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The events of a branch that is left between two questions do not slip in."""
    await index_events(chain_resources, reader)
    mark = actions.ask("evm_snapshot")
    user = actions.user(far=5)
    request = Endpoint.request

    async def leave_the_branch_after_its_logs(self: Endpoint, method: str, params: Any) -> Any:
        answer = await request(self, method, params)
        if method == "eth_getLogs":
            actions.ask("evm_revert", mark)
            actions.pass_by(8)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Endpoint, "request", leave_the_branch_after_its_logs)
        with pytest.raises(ChainMoved):
            await index_events(chain_resources, reader)
    await index_events(chain_resources, reader)
    assert await left(chain_resources, user) == (0, 0, 0)
    assert await stored(chain_resources, "Deposited") == []


async def test_old_hashes_are_forgotten(
    chain_resources: Resources,
    actions: Actions,
    reader: EscrowEventReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.chain_indexer.event_store.REORG_WINDOW", 3)
    for _ in range(8):
        actions.pass_by(1)
        await index_events(chain_resources, reader)
    async with chain_resources.sessions() as db:
        assert await db.scalar(select(func.count()).select_from(ChainBlock)) == 4
