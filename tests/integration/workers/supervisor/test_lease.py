"""Leases: one supervisor at a time may write, and a failed one's work is found again."""

import asyncio
import datetime as dt

import pytest
from redis.exceptions import TimeoutError as RedisTimeout
from sqlalchemy import func, select, update

from market import ledger, outbox, queue
from market.jobs import queries
from market.jobs.tables import Job
from market.ledger.tables import LedgerTransaction
from market.outbox import Outbox
from market.resources import Resources
from tests.support.factories import fund, hop, session, token_entries
from tests.support.market.leases import acquired, expire
from workers.crons import job_sweeper
from workers.crons.job_sweeper import delete_sent, sweep
from workers.exclusive import Stalled
from workers.supervisor import completion, lease
from workers.supervisor.errors import LeaseLost
from workers.supervisor.lease import Lease
from workers.supervisor.supervisor import Supervisor
from workers.supervisor.task import supervise


async def pending(resources: Resources) -> Job:
    """A job as the gateway leaves it: its price is held, and no supervisor has it."""
    job = session(status="pending", lease_counter=0)
    job.lease_expires_at = None
    async with resources.sessions.begin() as db:
        db.add(job)
        await db.flush()
        await fund(db, wallet=job.user_wallet, amount=job.hold_far)
        await ledger.hold(db, job=job.request_id, wallet=job.user_wallet, amount=job.hold_far)
        route = hop(epoch=1)
        route.session_id, route.wallet_address = job.id, "0x" + "bb" * 20
        db.add(route)
    return job


async def end(resources: Resources, held: Lease, tokens: int = 10) -> None:
    model = resources.catalog.get(held.job.model_id)
    await completion.end(
        resources,
        held,
        edge_units=model.edge_units,
        reason="length",
        code=None,
        progress=completion.Progress(token_entries(tokens)),
    )


async def captures(resources: Resources) -> int:
    async with resources.sessions() as db:
        return len(
            (
                await db.scalars(
                    select(LedgerTransaction).where(
                        LedgerTransaction.kind.in_(("capture", "release"))
                    )
                )
            ).all()
        )


async def test_only_one_of_many_gets_the_lease(resources: Resources) -> None:
    job = await pending(resources)
    attempts = await asyncio.gather(
        *(lease.acquire(resources.sessions, job.request_id, 60) for _ in range(8))
    )
    assert len([attempt for attempt in attempts if attempt is not None]) == 1


async def test_an_expired_lease_goes_to_the_next_with_a_higher_counter(
    resources: Resources,
) -> None:
    job = await pending(resources)
    first = await acquired(resources, job)
    await expire(resources, job)
    second = await acquired(resources, job)
    assert second.counter == first.counter + 1


async def test_a_supervisor_that_lost_its_lease_writes_nothing(resources: Resources) -> None:
    """It was paused for longer than its lease, and wakes up at the end of its generation."""
    job = await pending(resources)
    paused = await acquired(resources, job)
    await expire(resources, job)
    second = await acquired(resources, job)
    with pytest.raises(LeaseLost):
        await end(resources, paused)
    assert await captures(resources) == 0
    await end(resources, second)
    assert await captures(resources) == 1


async def test_a_generation_ends_once(resources: Resources) -> None:
    job = await pending(resources)
    held = await acquired(resources, job)
    await end(resources, held)
    with pytest.raises(LeaseLost):
        await end(resources, held)
    assert await captures(resources) == 1
    assert await lease.acquire(resources.sessions, job.request_id, 60) is None


async def test_a_lease_is_renewed_while_the_work_makes_progress(resources: Resources) -> None:
    job = await pending(resources)
    held = await acquired(resources, job, seconds=0.3)

    async def work() -> None:
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert await lease.acquire(resources.sessions, job.request_id, 60) is None
            held.progressed()

    await held.renew_while(work())


async def test_work_that_makes_no_progress_is_stopped(resources: Resources) -> None:
    job = await pending(resources)
    held = await acquired(resources, job, seconds=0.3)
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.set()
            raise

    with pytest.raises(Stalled):
        await held.renew_while(work())
    assert stopped.is_set()


async def test_a_supervisor_that_hangs_gives_its_generation_to_another(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await pending(resources)
    resources.settings.generation.lease = 0.3

    async def hang(_: Supervisor) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Supervisor, "run", hang)
    async with asyncio.timeout(20):
        await supervise({"resources": resources}, job.request_id)
    second = await lease.acquire(resources.sessions, job.request_id, 60)
    assert second is not None, "it has released the lease"


async def test_work_goes_on_while_postgres_does_not_answer(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else can take the lease meanwhile."""
    job = await pending(resources)
    held = await acquired(resources, job, seconds=0.3)
    renew, failures, renewed = Lease._renew, 0, asyncio.Event()

    async def fail_at_first(self: Lease) -> None:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise TimeoutError
        await renew(self)
        renewed.set()

    monkeypatch.setattr(Lease, "_renew", fail_at_first)

    async def work() -> None:
        while not renewed.is_set():
            held.progressed()
            await asyncio.sleep(0.02)

    async with asyncio.timeout(20):
        await held.renew_while(work())


async def test_an_outage_gives_the_generation_to_another_at_once(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a command that Redis did not answer nobody knows what this supervisor has done."""
    job = await pending(resources)

    async def time_out(_: Supervisor) -> None:
        raise RedisTimeout

    monkeypatch.setattr(Supervisor, "run", time_out)
    with pytest.raises(RedisTimeout):
        await supervise({"resources": resources}, job.request_id)
    assert await lease.acquire(resources.sessions, job.request_id, 60) is not None


async def test_losing_the_lease_stops_the_work(resources: Resources) -> None:
    job = await pending(resources)
    held = await acquired(resources, job, seconds=0.3)
    stopped = asyncio.Event()

    async def work() -> None:
        await expire(resources, job)
        await acquired(resources, job)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.set()
            raise

    with pytest.raises(LeaseLost):
        await held.renew_while(work())
    assert stopped.is_set()


async def test_an_error_of_the_work_is_raised_unchanged(resources: Resources) -> None:
    held = await acquired(resources, await pending(resources))

    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await held.renew_while(work())


async def test_a_cancel_reaches_the_supervisor_with_the_next_renewal(resources: Resources) -> None:
    job = await pending(resources)
    held = await acquired(resources, job, seconds=0.3)
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).values(cancel_requested=True))

    async def work() -> None:
        async with asyncio.timeout(5):
            while not held.cancel_requested:
                await asyncio.sleep(0.02)

    await held.renew_while(work())


async def test_the_sweeper_enqueues_jobs_without_a_lease(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_sweeper, "ATTEMPT_SECONDS", 10**10)  # from 1970 on it is one attempt
    monkeypatch.setattr(job_sweeper, "NEW_JOB_GRACE_SECONDS", 60.0)
    held, lost, new = [await pending(resources) for _ in range(3)]
    await acquired(resources, held)
    await acquired(resources, lost)
    await expire(resources, lost)
    context = {"resources": resources}
    await sweep(context)
    assert [task.args for task in await resources.queue.queued_jobs()] == [[lost.request_id]]
    await sweep(context)  # an attempt is enqueued once
    assert len(await resources.queue.queued_jobs()) == 1
    async with resources.sessions.begin() as db:
        await db.execute(
            update(Job)
            .where(Job.id == new.id)
            .values(started_at=func.now() - dt.timedelta(seconds=100))
        )
    await sweep(context)
    queued = {task.args[0] for task in await resources.queue.queued_jobs()}
    assert queued == {lost.request_id, new.request_id}


async def test_the_outbox_is_sent_once_and_nothing_in_it_is_lost(resources: Resources) -> None:
    async with resources.sessions.begin() as db:
        db.add_all([Outbox(task=queries.SUPERVISE, argument=f"req_{n}") for n in range(25)])
    sent = await asyncio.gather(
        *(outbox.send_outbox(resources.sessions, resources.queue) for _ in range(4))
    )
    assert sum(sent) == 25
    queued = sorted(task.args[0] for task in await resources.queue.queued_jobs())
    assert queued == sorted(f"req_{n}" for n in range(25))
    assert await outbox.send_outbox(resources.sessions, resources.queue) == 0


async def test_outbox_rows_are_deleted_a_day_after_they_were_sent(resources: Resources) -> None:
    now = dt.datetime.now(dt.UTC)
    ages = {"unsent": None, "new": dt.timedelta(hours=23), "old": dt.timedelta(hours=25)}
    async with resources.sessions.begin() as db:
        db.add_all(
            Outbox(task=queries.SUPERVISE, argument=name, sent_at=age and now - age)
            for name, age in ages.items()
        )
    await delete_sent({"resources": resources})
    async with resources.sessions() as db:
        left = (await db.scalars(select(Outbox.argument))).all()
    assert set(left) == {"unsent", "new"}


async def test_queued_tasks_are_not_pickled(resources: Resources) -> None:
    await queue.enqueue(resources.queue, queries.SUPERVISE, "req_1", dedup_key="x")
    stored = await resources.redis.get("arq:job:x")
    assert queue.deserialize(stored)["a"] == ["req_1"]
