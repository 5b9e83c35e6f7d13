"""The end of a generation, with its money."""

import asyncio
from decimal import Decimal

from sqlalchemy import select

from market import ledger
from market.jobs.tables import Job
from market.nodes.tables import RegisteredNode
from market.resources import Resources
from tests.support.factories import USER, fund
from tests.support.settled_money import PROVIDERS, served


async def fund_user(resources: Resources) -> None:
    async with resources.sessions.begin() as db:
        await fund(db)


async def test_nobody_pays_for_more_than_he_asked_for(resources: Resources) -> None:
    """An edge that writes on is not paid for it."""
    await fund_user(resources)
    job = await served(resources, USER, 107)
    async with resources.sessions() as db:
        ended = await db.get_one(Job, job.id)
        assert (ended.token_count, ended.total_cost_far) == (107, job.hold_far)
        assert await ledger.balance(db, ledger.available(USER)) == 1 - job.hold_far
        assert await ledger.balance(db, ledger.held(USER)) == 0


async def test_endings_at_once_count_each_in_their_nodes(resources: Resources) -> None:
    """Whatever the order of the stages: none waits for another in a circle."""
    await fund_user(resources)
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
    orders = [PROVIDERS, PROVIDERS[::-1]] * 8
    await asyncio.gather(*(served(resources, USER, 10, providers) for providers in orders))
    async with resources.sessions() as db:
        nodes = (await db.scalars(select(RegisteredNode))).all()
    assert [node.total_tokens_served for node in nodes] == [160] * 3
    earned = sum((node.total_earned_far for node in nodes), Decimal(0))
    assert earned == Decimal("0.001") * 16 * Decimal("0.95")
