"""A job whose end the database would refuse for ever: its user's money is held, and a slot lost."""

import asyncio
import datetime as dt

import pytest
import sqlalchemy.exc
from redis.asyncio import Redis
from sqlalchemy import func, select, update

from market import outages
from market.catalog.models import Catalog
from market.jobs import messaging
from market.jobs.tables import Job
from market.prompt_vault import PromptText
from market.resources import Resources
from mesh import wire
from tests.support.jobs import (
    POSITIONS,
    add_whole_node,
    opened_requests,
    reload,
    submit,
    until,
    write_tokens,
)
from tests.support.market.supervision import balances, served, supervised, wait_for_completion
from workers.dispatch import dispatcher, waiting_jobs
from workers.dispatch.dispatcher import Dispatcher
from workers.supervisor.task import supervise


async def set_columns(resources: Resources, job: Job, **values: object) -> None:
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).where(Job.id == job.id).values(**values))


async def test_a_job_that_was_left_for_a_month_ends(resources: Resources) -> None:
    job = await submit(resources, seconds=0)
    await set_columns(resources, job, started_at=dt.datetime.now(dt.UTC) - dt.timedelta(days=30))
    await supervise({"resources": resources}, job.request_id)
    ended = await reload(resources, job)
    assert (ended.status, ended.latency_ms) == ("failed", 2**31 - 1)
    assert await balances(resources, job) == (job.hold_far, 0)


async def test_an_edge_that_names_a_long_reason(resources: Resources, redis: Redis) -> None:
    async with served(resources, redis) as job:
        await write_tokens(redis, job, 1, 3)
        ended = wire.Ended(job.request_id, 1, "x" * 21, 3)
        await messaging.publish_event(redis, ended, sender="node_0")
        await wait_for_completion(resources, job)
    assert (await reload(resources, job)).finish_reason == "length"


async def test_an_edge_that_claims_caches_beyond_all_numbers(
    resources: Resources, redis: Redis
) -> None:
    """The count is kept when the next epoch begins."""
    async with served(resources, redis) as job:
        reused = wire.PrefixReused(job.request_id, 1, 2**40)
        await messaging.publish_event(redis, reused, sender="node_0")
        lost = wire.GenerationRefused(job.request_id, 1, "node_0", "gap")
        await messaging.publish_event(redis, lost, sender="node_0")

        async def has_next_epoch() -> bool:
            return len(await opened_requests(redis)) > 1

        await until(has_next_epoch)
    assert (await reload(resources, job)).cached_prompt_tokens == job.prompt_tokens


async def test_a_prompt_under_another_key_ends_its_job_at_once(resources: Resources) -> None:
    """Before a route is searched: there is no node here."""
    job = await submit(resources)
    other = resources.vault.encrypt("another request", PromptText([1], []).to_bytes())
    await set_columns(resources, job, request_cipher=other)
    await supervise({"resources": resources}, job.request_id)
    ended = await reload(resources, job)
    assert (ended.status, ended.error_code) == ("failed", "prompt_lost")
    assert await balances(resources, job) == (job.hold_far, 0)


async def test_a_job_with_a_state_that_nobody_can_read(resources: Resources, redis: Redis) -> None:
    """One of these ended every worker: the dispatcher reads the state of all jobs that wait."""
    broken, other = await submit(resources), await submit(resources)
    for job in (broken, other):
        await set_columns(resources, job, status="active", waiting_since=func.now())
    await set_columns(resources, broken, waiting_state={"hops": 5})
    await add_whole_node(redis, free_kv=2 * POSITIONS)
    async with supervised(resources):
        for job in (broken, other):

            async def is_open(job: Job = job) -> bool:
                return job.request_id in await opened_requests(redis)

            await until(is_open)


async def test_the_dispatcher_outlives_a_failure(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "OUTAGE_SECONDS", 0.01)
    looks = 0

    async def fail(*arguments: object, **options: object) -> None:
        nonlocal looks
        looks += 1
        raise KeyError("of a bug")

    monkeypatch.setattr(waiting_jobs, "find", fail)
    running = asyncio.create_task(Dispatcher(resources).run())

    async def has_looked_again() -> bool:
        return looks > 1

    await until(has_looked_again)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_fails_for_one_model_wakes_those_of_others(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await submit(resources) for _ in range(2)]
    for job in jobs:
        await set_columns(resources, job, status="active", waiting_since=func.now())
    [model] = resources.settings.models
    resources.catalog = Catalog([model, model.model_copy(update={"id": "another"})])
    models = [model.id, "another"]
    looked: list[str] = []

    async def fail_first(self: Dispatcher, model_id: str, of_model: object) -> None:
        looked.append(model_id)
        if len(looked) == 1:
            raise KeyError("of a bug")

    monkeypatch.setattr(Dispatcher, "_wake_for_routes", fail_first)
    for job, model_id in zip(jobs, models, strict=True):
        await set_columns(resources, job, model_id=model_id)
    await Dispatcher(resources).dispatch()
    assert sorted(looked) == sorted(models)


async def test_many_jobs_of_one_model_hide_none_of_another(resources: Resources) -> None:
    many = [await submit(resources) for _ in range(3)]
    one = await submit(resources)
    await set_columns(resources, one, model_id="another")
    for job in (*many, one):
        await set_columns(resources, job, status="active", waiting_since=func.now())
    found = await waiting_jobs.find(resources.sessions, limit=2)
    assert {job.request_id for job in found} == {
        each.request_id for each in (many[0], many[1], one)
    }


@pytest.mark.parametrize("values", [{"latency_ms": 2**31}, {"status": "odd"}])
async def test_a_value_that_is_refused_is_no_outage(
    resources: Resources, values: dict[str, object]
) -> None:
    """The driver refuses the first, Postgres the second."""
    job = await submit(resources)
    with pytest.raises(sqlalchemy.exc.DBAPIError) as refused:
        await set_columns(resources, job, **values)
    assert not outages.is_outage(refused.value)
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        outages.unavailable(refused.value)


async def test_a_time_limit_is_an_outage(resources: Resources) -> None:
    async with resources.sessions() as db:
        await db.execute(select(func.set_config("statement_timeout", "10", True)))
        with pytest.raises(sqlalchemy.exc.DBAPIError) as late:
            await db.execute(select(func.pg_sleep(5)))
    assert outages.is_outage(late.value)
