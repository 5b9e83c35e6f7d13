"""The end of a generation, with its money."""

import asyncio
from decimal import Decimal

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from market import ledger
from market.jobs.reading.stored_tokens import StoredTokensReader
from market.jobs.tables import Job, StoredTokens
from market.nodes.tables import RegisteredNode
from market.resources import Resources
from tests.support.chain.settled_money import PROVIDERS, end, served
from tests.support.factories import USER, fund, token_entries
from tests.support.jobs import until
from workers.supervisor.errors import LeaseLost


async def fund_user(resources: Resources) -> None:
    async with resources.sessions.begin() as db:
        await fund(db)


async def register_nodes(resources: Resources) -> None:
    async with resources.sessions.begin() as db:
        for stage, wallet in enumerate(PROVIDERS):
            db.add(
                RegisteredNode(
                    node_id=f"node-{stage}",
                    wallet_address=wallet,
                    model_id="m",
                    start_layer=0,
                    end_layer=2,
                )
            )


async def test_nobody_pays_for_more_than_he_asked_for(resources: Resources) -> None:
    """An edge that writes on is not paid for it."""
    await fund_user(resources)
    job = await served(resources, USER, 107)
    async with resources.sessions() as db:
        ended = await db.get_one(Job, job.id)
        assert (ended.token_count, ended.total_cost_far) == (107, job.hold_far)
        assert await ledger.balance(db, ledger.available(USER)) == 1 - job.hold_far
        assert await ledger.balance(db, ledger.held(USER)) == 0


async def test_generations_that_end_at_once_each_count_in_their_nodes(resources: Resources) -> None:
    """Whatever the order of the stages: none waits for another in a circle."""
    await fund_user(resources)
    await register_nodes(resources)
    orders = [PROVIDERS, PROVIDERS[::-1]] * 8
    await asyncio.gather(*(served(resources, USER, 10, providers) for providers in orders))
    async with resources.sessions() as db:
        nodes = (await db.scalars(select(RegisteredNode))).all()
    assert [node.total_tokens_served for node in nodes] == [160] * 3
    earned = sum((node.total_earned_far for node in nodes), Decimal(0))
    assert earned == Decimal("0.001") * 16 * Decimal("0.95")


BLOCKED = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock' AND query LIKE '%node_registry%'"
)


async def test_a_worker_killed_in_the_middle_leaves_neither_charge_nor_text(
    resources: Resources,
) -> None:
    """Its connection breaks with everything written and nothing committed. Whoever ends the job
    after it charges once, and stores what he charges for."""
    await fund_user(resources)
    await register_nodes(resources)
    async with resources.sessions() as other:
        await other.execute(select(RegisteredNode).with_for_update())
        ending = asyncio.create_task(served(resources, USER, 10))

        async def blocked() -> int | None:
            async with resources.sessions() as db:
                return await db.scalar(BLOCKED)

        await until(blocked)
        async with resources.sessions() as db:
            await db.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": await blocked()})
        with pytest.raises(DBAPIError):
            await ending
    async with resources.sessions() as db:
        [job] = await db.scalars(select(Job))
        assert (job.status, job.token_count) == ("active", 0)
        assert await ledger.balance(db, ledger.held(USER)) == job.hold_far
        assert await db.scalar(select(func.count()).select_from(StoredTokens)) == 0
    await end(resources, job, 10)
    with pytest.raises(LeaseLost):
        await end(resources, job, 20)
    reader = StoredTokensReader(resources.sessions, resources.vault)
    assert await reader.all(job.request_id) == token_entries(10)
    async with resources.sessions() as db:
        assert await ledger.balance(db, ledger.available(USER)) == 1 - Decimal("0.001")
        assert await ledger.balance(db, ledger.held(USER)) == 0
