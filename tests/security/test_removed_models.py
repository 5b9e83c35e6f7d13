"""An operator takes a model off offer, or a user outlasts one, while a job holds money for it."""

import datetime as dt

import pytest
from redis.asyncio import Redis
from sqlalchemy import update

from market import ledger
from market.catalog.models import Catalog
from market.jobs import live_session
from market.jobs.tables import Job
from market.resources import Resources
from tests.support.jobs import POSITIONS, add_whole_node, reload, submit, write_tokens
from tests.support.market.supervision import balances, supervised, wait_for_first_epoch
from workers.supervisor.task import supervise


async def set_columns(resources: Resources, job: Job, **values: object) -> None:
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).where(Job.id == job.id).values(**values))


async def test_a_job_without_its_model_ends_at_its_deadline_and_costs_what_was_delivered(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        await write_tokens(redis, job, 1, 3)
    resources.catalog = Catalog([])
    await supervise({"resources": resources}, job.request_id)
    assert (await reload(resources, job)).status == "active"  # another worker may have the model
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    await set_columns(resources, job, deadline_at=past)
    await supervise({"resources": resources}, job.request_id)
    ended = await reload(resources, job)
    assert (ended.status, ended.error_code, ended.token_count) == ("failed", "deadline_exceeded", 3)
    assert ended.total_cost_far == 3 * job.price_per_token_far
    assert await balances(resources, job) == (job.hold_far - ended.total_cost_far, 0)
    entries = await live_session.read(redis, job.request_id, "0-0")
    assert isinstance(entries[-1], live_session.EndEntry)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_job_that_waits_for_such_a_model_gets_its_hold_back(
    resources: Resources, cancelled: bool
) -> None:
    job = await submit(resources, seconds=60 if cancelled else 0)
    await set_columns(resources, job, cancel_requested=cancelled)
    resources.catalog = Catalog([])
    await supervise({"resources": resources}, job.request_id)
    assert (await reload(resources, job)).status == ("completed" if cancelled else "failed")
    assert await balances(resources, job) == (job.hold_far, 0)
    async with resources.sessions() as db:
        assert await ledger.balance(db, ledger.held(job.user_wallet)) == 0
