"""Leases: one supervisor at a time may write, and a failed one's work is found again."""

import asyncio
import datetime as dt

import pytest
from sqlalchemy import func, select, update

from market import ledger, outbox, queue
from market.jobs import queries
from market.jobs.tables import Job
from market.ledger.tables import LedgerTransaction
from market.outbox import Outbox
from market.resources import Services
from tests.support.factories import fund, hop, session
from workers.crons.job_sweeper import sweep
from workers.supervisor import completion, lease
from workers.supervisor.errors import LeaseLost
from workers.supervisor.lease import Lease


async def pending(services: Services) -> Job:
    """A job as the gateway leaves it: paid for, held, not taken up."""
    job = session(status="pending", lease_counter=0)
    job.lease_expires_at = None
    async with services.sessions.begin() as db:
        db.add(job)
        await db.flush()
        await fund(db, wallet=job.user_wallet, amount=job.hold_far)
        await ledger.hold(db, job=job.request_id, wallet=job.user_wallet, amount=job.hold_far)
        route = hop(epoch=1)
        route.session_id, route.wallet_address = job.id, "0x" + "bb" * 20
        db.add(route)
    return job


async def taken(services: Services, job: Job, seconds: float = 60) -> Lease:
    found = await lease.take(services.sessions, job.request_id, seconds)
    assert found is not None
    return found


async def run_out(services: Services, job: Job) -> None:
    """As if the holder had not renewed for its whole length."""
    async with services.sessions.begin() as db:
        past = func.now() - dt.timedelta(seconds=1)
        await db.execute(update(Job).where(Job.id == job.id).values(lease_expires_at=past))


async def end(services: Services, held: Lease, tokens: int = 10) -> None:
    model = services.catalog.get(held.job.model_id)
    await completion.complete(
        services, held, model, tokens=tokens, reason="length", first_token_at=None
    )


async def captures(services: Services) -> int:
    async with services.sessions() as db:
        return len(
            (
                await db.scalars(
                    select(LedgerTransaction).where(
                        LedgerTransaction.kind.in_(("capture", "release"))
                    )
                )
            ).all()
        )


async def test_only_one_of_many_gets_the_lease(services: Services) -> None:
    job = await pending(services)
    attempts = await asyncio.gather(
        *(lease.take(services.sessions, job.request_id, 60) for _ in range(8))
    )
    assert len([attempt for attempt in attempts if attempt is not None]) == 1


async def test_a_lease_that_ran_out_goes_to_the_next_with_a_higher_counter(
    services: Services,
) -> None:
    job = await pending(services)
    first = await taken(services, job)
    await run_out(services, job)
    second = await taken(services, job)
    assert second.counter == first.counter + 1


async def test_a_supervisor_that_was_overtaken_writes_nothing(services: Services) -> None:
    """It was paused for longer than its lease, and wakes up at the end of its generation."""
    job = await pending(services)
    paused = await taken(services, job)
    await run_out(services, job)
    second = await taken(services, job)
    with pytest.raises(LeaseLost):
        await end(services, paused)
    with pytest.raises(LeaseLost):
        await completion.fail(services, paused, code="stalled")
    assert await captures(services) == 0
    await end(services, second)
    assert await captures(services) == 1


async def test_a_generation_ends_once(services: Services) -> None:
    job = await pending(services)
    held = await taken(services, job)
    await end(services, held)
    with pytest.raises(LeaseLost):
        await end(services, held)
    assert await captures(services) == 1
    assert await lease.take(services.sessions, job.request_id, 60) is None


async def test_a_lease_is_renewed_while_the_work_runs(services: Services) -> None:
    job = await pending(services)
    held = await taken(services, job, seconds=0.3)

    async def work() -> None:
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert await lease.take(services.sessions, job.request_id, 60) is None

    await held.renew_while(work())


async def test_losing_the_lease_stops_the_work(services: Services) -> None:
    job = await pending(services)
    held = await taken(services, job, seconds=0.3)
    stopped = asyncio.Event()

    async def work() -> None:
        await run_out(services, job)
        await taken(services, job)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.set()
            raise

    with pytest.raises(LeaseLost):
        await held.renew_while(work())
    assert stopped.is_set()


async def test_an_error_of_the_work_comes_out_as_it_is(services: Services) -> None:
    held = await taken(services, await pending(services))

    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await held.renew_while(work())


async def test_a_cancel_reaches_the_supervisor_with_the_next_renewal(services: Services) -> None:
    job = await pending(services)
    held = await taken(services, job, seconds=0.3)
    async with services.sessions.begin() as db:
        await db.execute(update(Job).values(cancel_requested=True))

    async def work() -> None:
        async with asyncio.timeout(5):
            while not held.cancel_requested:
                await asyncio.sleep(0.02)

    await held.renew_while(work())


async def test_the_sweeper_enqueues_what_nobody_works_on(services: Services) -> None:
    held, lost, new = [await pending(services) for _ in range(3)]
    await taken(services, held)
    await taken(services, lost)
    await run_out(services, lost)
    context = {"services": services}
    await sweep(context)
    assert [job.args for job in await services.queue.queued_jobs()] == [[lost.request_id]]
    await sweep(context)  # an attempt is enqueued once
    assert len(await services.queue.queued_jobs()) == 1
    async with services.sessions.begin() as db:
        await db.execute(
            update(Job)
            .where(Job.id == new.id)
            .values(started_at=func.now() - dt.timedelta(seconds=10))
        )
    await sweep(context)
    queued = {job.args[0] for job in await services.queue.queued_jobs()}
    assert queued == {lost.request_id, new.request_id}


async def test_the_outbox_is_sent_once_and_nothing_in_it_is_lost(services: Services) -> None:
    async with services.sessions.begin() as db:
        db.add_all([Outbox(task=queries.SUPERVISE, argument=f"req_{n}") for n in range(25)])
    sent = await asyncio.gather(
        *(outbox.send_outbox(services.sessions, services.queue) for _ in range(4))
    )
    assert sum(sent) == 25
    queued = sorted(job.args[0] for job in await services.queue.queued_jobs())
    assert queued == sorted(f"req_{n}" for n in range(25))
    assert await outbox.send_outbox(services.sessions, services.queue) == 0


async def test_what_the_queue_holds_is_no_pickle(services: Services) -> None:
    await queue.enqueue(services.queue, queries.SUPERVISE, "req_1", dedup_key="x")
    stored = await services.redis.get("arq:job:x")
    assert queue.deserialize(stored)["a"] == ["req_1"]
