"""A generation's supervisor and nodes that the test plays."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from sqlalchemy import func, select, update

from market import ledger
from market.jobs import messaging
from market.jobs.tables import Job, RouteHop
from market.nodes import live_registry
from market.prompt_vault import PromptText
from market.resources import Resources
from market.routing.skip_counts import skips_of
from mesh import redis_keys, token_stream, wire
from mesh.route_record import RouteRecord
from tests.conftest import MODEL_ID
from tests.support.api import LAYERS, node
from tests.support.factories import fund, session
from workers.supervisor.task import supervise

WHOLE = {"start_layer": 0, "end_layer": LAYERS}
POSITIONS = 103
"""Of one generation: the prompt's 3 and 100 new ones."""


async def submit(resources: Resources, *, seconds: float = 60) -> Job:
    """A job as the gateway leaves it, due in so many seconds."""
    job = session(status="pending", lease_counter=0)
    job.epoch, job.lease_expires_at = 0, None
    job.deadline_at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    job.request_cipher = resources.vault.seal(job.request_id, PromptText([1, 2, 3], []))
    async with resources.sessions.begin() as db:
        db.add(job)
        await fund(db, wallet=job.user_wallet, amount=job.hold_far)
        await ledger.hold(db, job=job.request_id, wallet=job.user_wallet, amount=job.hold_far)
    return job


async def reload(resources: Resources, job: Job) -> Job:
    async with resources.sessions() as db:
        return await db.get_one(Job, job.id)


@asynccontextmanager
async def supervised(resources: Resources, *jobs: Job) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(supervise({"resources": resources}, job.request_id)) for job in jobs
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def put_node(redis: Redis, *, free_kv: int) -> None:
    """One node for all layers, with a keep-alive that lasts an hour."""
    await live_registry.put(redis, node(0, **WHOLE), ttl=3600)
    await redis.set(redis_keys.keepalive("node_0"), free_kv, ex=3600)


async def opened(redis: Redis, node_id: str = "node_0") -> list[str]:
    """Request ids that the node, an edge, was asked to open."""
    entries = await redis.xrange(redis_keys.inbox(node_id))
    messages = [wire.decode(fields) for _, fields in entries]
    return [message.request_id for message in messages if isinstance(message, wire.OpenEdge)]


async def wait_for(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    give_up = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < give_up
        await asyncio.sleep(0.02)


async def balances(resources: Resources, job: Job) -> tuple[Decimal, Decimal]:
    """What the job's wallet may spend, and what is held."""
    async with resources.sessions() as db:
        return (
            await ledger.balance(db, ledger.available(job.user_wallet)),
            await ledger.balance(db, ledger.held(job.user_wallet)),
        )


async def test_without_nodes_a_job_waits_until_its_deadline_and_is_refunded(
    resources: Resources,
) -> None:
    job = await submit(resources, seconds=2.5)
    await asyncio.wait_for(supervise({"resources": resources}, job.request_id), timeout=20)
    ended = await reload(resources, job)
    assert dt.datetime.now(dt.UTC) >= job.deadline_at
    assert (ended.status, ended.error_code) == ("failed", "no_route")
    assert await balances(resources, job) == (job.hold_far, 0)


async def test_while_a_job_waits_the_nodes_that_are_there_are_told_why(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at each poll: a job may wait for a quarter of an hour."""
    monkeypatch.setattr("workers.supervisor.epochs.COUNT_SKIPS_SECONDS", 2.0)
    job = await submit(resources)
    await live_registry.put(redis, node(0), ttl=3600)
    await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)
    async with supervised(resources, job):
        await asyncio.sleep(1.5)
        assert await skips_of(redis, "node_0") == {"span_meets_nobody": 1}

        async def is_counted_again() -> bool:
            return await skips_of(redis, "node_0") == {"span_meets_nobody": 2}

        await wait_for(is_counted_again)


async def test_a_job_that_waits_is_served_when_a_node_comes(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.sleep(0.5)
        assert await opened(redis) == []
        await put_node(redis, free_kv=POSITIONS)

        async def is_open() -> bool:
            return await opened(redis) == [job.request_id]

        await wait_for(is_open)
    assert (await reload(resources, job)).epoch == 1


async def test_the_live_record_tells_the_route_with_the_epoch(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await put_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):

        async def is_open() -> bool:
            return await opened(redis) == [job.request_id]

        await wait_for(is_open)
    written = await redis.hgetall(redis_keys.live_record(job.request_id))  # type: ignore[misc]
    width = resources.catalog.get(job.model_id).width
    assert written[b"epoch"] == b"1"
    assert RouteRecord.unpack(written[b"route"]) == RouteRecord(width, POSITIONS, ["node_0"])


async def test_jobs_beyond_a_nodes_free_kv_queue_without_asking_it(
    resources: Resources, redis: Redis
) -> None:
    """The KV cache holds two of six: two are opened, and each keep-alive with space for one more
    lets one more in."""
    jobs = [await submit(resources) for _ in range(6)]
    await put_node(redis, free_kv=2 * POSITIONS)
    async with supervised(resources, *jobs):
        for count in range(2, 7):

            async def are_open(count: int = count) -> bool:
                return len(await opened(redis)) == count

            await wait_for(are_open)
            await asyncio.sleep(1)
            assert len(await opened(redis)) == count
            assert int(await redis.get(redis_keys.keepalive("node_0"))) < POSITIONS
            await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)
    assert set(await opened(redis)) == {job.request_id for job in jobs}
    async with resources.sessions() as db:
        assert await db.scalar(select(func.max(RouteHop.epoch))) == 1  # nobody tried in vain


async def completed(resources: Resources, job: Job) -> None:
    async def is_over() -> bool:
        return (await reload(resources, job)).status == "completed"

    await wait_for(is_over)


async def first_epoch(resources: Resources, redis: Redis, job: Job) -> None:
    async def is_open() -> bool:
        return job.request_id in await opened(redis)

    await wait_for(is_open)


@asynccontextmanager
async def served(resources: Resources, redis: Redis) -> AsyncIterator[Job]:
    """A job under supervision, in its first epoch on the one node."""
    job = await submit(resources)
    await put_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):
        await first_epoch(resources, redis, job)
        yield job


async def write(redis: Redis, job: Job, epoch: int, count: int) -> None:
    """Tokens, as the edge writes them."""
    keys = (redis_keys.live_record(job.request_id), redis_keys.tokens(job.request_id))
    for index in range(count):
        assert await redis.eval(token_stream.APPEND_TOKEN, 2, *keys, epoch, index, 7, "x") == 1


async def test_an_answer_that_ends_while_a_route_is_sought_is_complete(
    resources: Resources, redis: Redis
) -> None:
    """The penalised node was only slow: its epoch lasts until the next begins."""
    async with served(resources, redis) as job:
        await messaging.publish_event(
            redis, wire.Refused(job.request_id, 1, "node_0", "not_finite")
        )
        await asyncio.sleep(1)
        await write(redis, job, 1, 5)
        await messaging.publish_event(redis, wire.Ended(job.request_id, 1, "stop", 5))
        await completed(resources, job)
    assert (await reload(resources, job)).token_count == 5


async def test_a_full_node_is_not_asked_again_until_it_has_free_kv(
    resources: Resources, redis: Redis
) -> None:
    async with served(resources, redis) as job:
        await redis.set(redis_keys.keepalive("node_0"), 0, ex=3600)
        await messaging.publish_event(redis, wire.Refused(job.request_id, 1, "node_0", "kv_full"))
        await asyncio.sleep(2)
        assert len(await opened(redis)) == 1
        await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)

        async def is_open_again() -> bool:
            return len(await opened(redis)) == 2

        await wait_for(is_open_again)


async def test_a_node_off_the_route_is_not_penalised(resources: Resources, redis: Redis) -> None:
    async with served(resources, redis) as job:
        await messaging.publish_event(
            redis, wire.Refused(job.request_id, 1, "node_elsewhere", "not_finite")
        )
        await asyncio.sleep(1)
        assert not await redis.exists(redis_keys.cooldown("node_elsewhere"))
        assert len(await opened(redis)) == 1


async def join(redis: Redis, node_id: str, span: tuple[int, int], *, ms: float) -> None:
    """A node that needs ``ms`` for a step, with KV cache for any generation, for an hour."""
    start, end = span
    edge = start == 0
    joined = node(
        0, node_id=node_id, start_layer=start, end_layer=end, edge=edge, trusted=edge, latency_ms=ms
    )
    await live_registry.put(redis, joined, ttl=3600)
    await redis.set(redis_keys.keepalive(node_id), 10_000, ex=3600)


async def refuse(resources: Resources, redis: Redis, job: Job, liar: str, code: str) -> None:
    """Whatever the liar is asked to open it refuses, until another edge completes the job."""
    refused = 0
    while not await opened(redis, "honest"):
        epoch = (await reload(resources, job)).epoch
        if epoch > refused and len(await opened(redis)) == epoch:
            refused = epoch
            await messaging.publish_event(redis, wire.Refused(job.request_id, epoch, liar, code))
        await asyncio.sleep(0.02)
    epoch = (await reload(resources, job)).epoch
    await write(redis, job, epoch, 3)
    await messaging.publish_event(redis, wire.Ended(job.request_id, epoch, "stop", 3))
    await completed(resources, job)


@pytest.mark.parametrize("code", ["gap", "forgotten", "no_replay"])
async def test_who_loses_its_state_twice_is_gone_around(
    resources: Resources, redis: Redis, code: str
) -> None:
    """The first time it is excused, since messages get lost. It would refuse for ever."""
    await join(redis, "node_0", (0, LAYERS), ms=1)
    await join(redis, "honest", (0, LAYERS), ms=50)
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.wait_for(refuse(resources, redis, job, "node_0", code), timeout=20)
    assert len(await opened(redis)) == 2
    assert await redis.exists(redis_keys.cooldown("node_0"))
    assert not await redis.exists(redis_keys.cooldown("honest"))


async def test_for_steps_that_do_not_arrive_sender_and_receiver_are_penalised(
    resources: Resources, redis: Redis
) -> None:
    await join(redis, "node_0", (0, 3), ms=1)
    await join(redis, "middle", (3, 4), ms=1)
    await join(redis, "receiver", (4, LAYERS), ms=1)
    await join(redis, "honest", (0, LAYERS), ms=50)
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.wait_for(refuse(resources, redis, job, "receiver", "gap"), timeout=20)
    nodes = ("node_0", "middle", "receiver")
    assert [await redis.exists(redis_keys.cooldown(each)) for each in nodes] == [0, 1, 1]


async def test_what_a_node_makes_up_is_no_label(resources: Resources, redis: Redis) -> None:
    def rerouted(reason: str) -> float | None:
        labels = {"model_id": MODEL_ID, "reason": reason}
        return REGISTRY.get_sample_value("far_mesh_reroutes_total", labels)

    before = rerouted("broken_rule") or 0
    await join(redis, "node_0", (0, LAYERS), ms=1)
    await join(redis, "honest", (0, LAYERS), ms=50)
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.wait_for(refuse(resources, redis, job, "node_0", "x" * 64), timeout=20)
    assert rerouted("broken_rule") == before + 1
    assert rerouted("x" * 64) is None
    assert await redis.exists(redis_keys.cooldown("node_0"))


async def test_what_is_no_message_stops_nobody(resources: Resources, redis: Redis) -> None:
    async with served(resources, redis) as job:
        await redis.xadd(redis_keys.events(job.request_id), {"h": b"\xc1"})
        await write(redis, job, 1, 3)
        await messaging.publish_event(redis, wire.Ended(job.request_id, 1, "stop", 3))
        await completed(resources, job)


@pytest.mark.parametrize("further", [True, False], ids=["further", "no further"])
async def test_slow_is_not_stalled(resources: Resources, redis: Redis, further: bool) -> None:
    """A node that answers, and has come further each time it is asked, keeps its generation."""
    resources.settings.generation.stall = 0.5
    job = await submit(resources)
    await put_node(redis, free_kv=POSITIONS)
    answered = 0
    async with supervised(resources, job):
        await first_epoch(resources, redis, job)
        after = "0-0"
        give_up = asyncio.get_running_loop().time() + 6
        while asyncio.get_running_loop().time() < give_up:
            found = await redis.xread({redis_keys.inbox("node_0"): after}, block=200)
            for entry, fields in found[0][1] if found else ():
                after, message = entry.decode(), wire.decode(fields)
                if isinstance(message, wire.Ping):
                    answered += 1
                    positions = answered if further else 1
                    pong = wire.Pong(job.request_id, message.epoch, "node_0", positions)
                    await messaging.publish_event(redis, pong)
        assert answered > 2
        assert (len(await opened(redis)) == 1) == further


async def test_a_successor_that_is_to_cancel_frees_the_route(
    resources: Resources, redis: Redis
) -> None:
    async with served(resources, redis) as job:
        pass
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).where(Job.id == job.id).values(cancel_requested=True))
    await supervise({"resources": resources}, job.request_id)
    entries = await redis.xrange(redis_keys.inbox("node_0"))
    assert isinstance(wire.decode(entries[-1][1]), wire.Close)


async def test_a_job_that_waits_can_be_cancelled(resources: Resources) -> None:
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.sleep(0.3)
        async with resources.sessions.begin() as db:
            await db.execute(update(Job).where(Job.id == job.id).values(cancel_requested=True))
        await completed(resources, job)
    assert (await reload(resources, job)).finish_reason == "cancelled"
    assert await balances(resources, job) == (job.hold_far, 0)
