"""A generation's supervisor and nodes that the test plays."""

import asyncio
import datetime as dt

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from sqlalchemy import func, select, update

from market.jobs import messaging
from market.jobs.tables import Job, RouteHop
from market.nodes import live_registry
from market.resources import Resources
from market.routing.skip_counts import skips_of
from mesh import redis_keys, wire
from mesh.route_record import RouteRecord
from tests.conftest import MODEL_ID
from tests.support.gateway.api import LAYERS, node
from tests.support.jobs import (
    POSITIONS,
    add_whole_node,
    opened_requests,
    reload,
    submit,
    until,
    write_tokens,
)
from tests.support.market.supervision import (
    add_node,
    balances,
    refuse,
    served,
    supervised,
    wait_for_completion,
    wait_for_first_epoch,
)
from workers.supervisor.task import supervise


async def test_without_nodes_a_job_waits_until_its_deadline_and_is_refunded(
    resources: Resources,
) -> None:
    job = await submit(resources, seconds=2.5)
    async with supervised(resources, job):

        async def has_failed() -> bool:
            return (await reload(resources, job)).status == "failed"

        await until(has_failed)
    ended = await reload(resources, job)
    assert dt.datetime.now(dt.UTC) >= job.deadline_at
    assert (ended.status, ended.error_code) == ("failed", "no_route")
    assert await balances(resources, job) == (job.hold_far, 0)


async def test_while_a_job_waits_skip_reasons_of_live_nodes_are_counted(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at each poll: a job may wait for a quarter of an hour."""
    monkeypatch.setattr("workers.dispatch.dispatcher.COUNT_SKIPS_SECONDS", 2.0)
    job = await submit(resources)
    await live_registry.put(redis, node(0), ttl=3600)
    await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)
    async with supervised(resources, job):
        await asyncio.sleep(1.5)
        assert await skips_of(redis, "node_0") == {"span_meets_nobody": 1}

        async def is_counted_again() -> bool:
            return await skips_of(redis, "node_0") == {"span_meets_nobody": 2}

        await until(is_counted_again)


async def test_a_job_that_waits_is_served_when_a_node_comes(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.sleep(0.5)
        assert await opened_requests(redis) == []
        await add_whole_node(redis, free_kv=POSITIONS)

        async def is_open() -> bool:
            return await opened_requests(redis) == [job.request_id]

        await until(is_open)
    assert (await reload(resources, job)).epoch == 1


async def test_the_live_record_tells_the_route_with_the_epoch(
    resources: Resources, redis: Redis
) -> None:
    job = await submit(resources)
    await add_whole_node(redis, free_kv=POSITIONS)
    async with supervised(resources, job):

        async def is_open() -> bool:
            return await opened_requests(redis) == [job.request_id]

        await until(is_open)
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
    await add_whole_node(redis, free_kv=2 * POSITIONS)
    async with supervised(resources, *jobs):
        for count in range(2, 7):

            async def are_open(count: int = count) -> bool:
                return len(await opened_requests(redis)) == count

            await until(are_open)
            await asyncio.sleep(1)
            assert len(await opened_requests(redis)) == count
            assert int(await redis.get(redis_keys.keepalive("node_0"))) < POSITIONS
            await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)
    assert set(await opened_requests(redis)) == {job.request_id for job in jobs}
    async with resources.sessions() as db:
        assert await db.scalar(select(func.max(RouteHop.epoch))) == 1  # nobody tried in vain


async def test_a_generation_may_end_while_its_next_route_is_searched(
    resources: Resources, redis: Redis
) -> None:
    """The penalised node was only slow: its epoch lasts until the next begins."""
    async with served(resources, redis) as job:
        await messaging.publish_event(
            redis,
            wire.GenerationRefused(job.request_id, 1, "node_0", "flood"),
            sender="node_0",
        )
        await asyncio.sleep(1)
        await write_tokens(redis, job, 1, 5)
        await messaging.publish_event(
            redis, wire.Ended(job.request_id, 1, "stop", 5), sender="node_0"
        )
        await wait_for_completion(resources, job)
    assert (await reload(resources, job)).token_count == 5


async def test_a_full_node_is_not_asked_again_until_it_has_free_kv(
    resources: Resources, redis: Redis
) -> None:
    async with served(resources, redis) as job:
        await redis.set(redis_keys.keepalive("node_0"), 0, ex=3600)
        await messaging.publish_event(
            redis, wire.GenerationRefused(job.request_id, 1, "node_0", "kv_full"), sender="node_0"
        )
        await asyncio.sleep(2)
        assert len(await opened_requests(redis)) == 1
        await redis.set(redis_keys.keepalive("node_0"), POSITIONS, ex=3600)

        async def is_open_again() -> bool:
            return len(await opened_requests(redis)) == 2

        await until(is_open_again)


async def test_a_node_off_the_route_is_not_penalised(resources: Resources, redis: Redis) -> None:
    async with served(resources, redis) as job:
        refused = wire.GenerationRefused(job.request_id, 1, "node_elsewhere", "not_finite")
        await messaging.publish_event(redis, refused, sender="node_0")
        await asyncio.sleep(1)
        assert not await redis.exists(redis_keys.cooldown("node_elsewhere"))
        assert len(await opened_requests(redis)) == 1


@pytest.mark.parametrize("code", ["gap", "forgotten", "no_replay"])
async def test_a_node_that_loses_its_state_twice_is_avoided(
    resources: Resources, redis: Redis, code: str
) -> None:
    """The first loss is tolerated, since messages get lost. The node would refuse for ever."""
    await add_node(redis, "node_0", (0, LAYERS), ms=1)
    await add_node(redis, "honest", (0, LAYERS), ms=50)
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.wait_for(refuse(resources, redis, job, "node_0", code), timeout=20)
    assert len(await opened_requests(redis)) == 2
    assert await redis.exists(redis_keys.cooldown("node_0"))
    assert not await redis.exists(redis_keys.cooldown("honest"))


async def test_sender_and_receiver_of_steps_that_do_not_arrive_are_in_dispute(
    resources: Resources, redis: Redis
) -> None:
    """The generation avoids both; neither is taken from others for what only one of them says."""
    await add_node(redis, "node_0", (0, 3), ms=1)
    await add_node(redis, "middle", (3, 4), ms=1)
    await add_node(redis, "receiver", (4, LAYERS), ms=1)
    await add_node(redis, "honest", (0, LAYERS), ms=50)
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.wait_for(refuse(resources, redis, job, "receiver", "gap"), timeout=20)
    nodes = ("node_0", "middle", "receiver")
    assert [await redis.exists(redis_keys.cooldown(each)) for each in nodes] == [0, 0, 0]


async def test_an_unknown_refusal_code_is_no_label_of_a_metric(
    resources: Resources, redis: Redis
) -> None:
    def rerouted(reason: str) -> float | None:
        labels = {"model_id": MODEL_ID, "reason": reason}
        return REGISTRY.get_sample_value("far_mesh_reroutes_total", labels)

    before = rerouted("broken_rule") or 0
    await add_node(redis, "node_0", (0, LAYERS), ms=1)
    await add_node(redis, "honest", (0, LAYERS), ms=50)
    job = await submit(resources)
    async with supervised(resources, job):
        await asyncio.wait_for(refuse(resources, redis, job, "node_0", "x" * 64), timeout=20)
    assert rerouted("broken_rule") == before + 1
    assert rerouted("x" * 64) is None
    assert await redis.exists(redis_keys.cooldown("node_0"))


async def test_a_malformed_event_is_ignored(resources: Resources, redis: Redis) -> None:
    async with served(resources, redis) as job:
        await redis.xadd(redis_keys.events(job.request_id), {"h": b"\xc1"})
        await write_tokens(redis, job, 1, 3)
        ended = wire.Ended(job.request_id, 1, "stop", 3)
        await messaging.publish_event(redis, ended, sender="node_0")
        await wait_for_completion(resources, job)


@pytest.mark.parametrize("advancing", [True, False], ids=["advancing", "not advancing"])
async def test_a_slow_node_is_not_taken_for_stalled(
    resources: Resources, redis: Redis, advancing: bool
) -> None:
    """A node that answers, and has computed more each time it is asked, keeps its generation."""
    resources.settings.generation.stall = 0.5
    job = await submit(resources, prompt_tokens=50)
    await add_whole_node(redis, free_kv=2 * POSITIONS)
    answered = 0
    async with supervised(resources, job):
        await wait_for_first_epoch(resources, redis, job)
        after = "0-0"
        give_up = asyncio.get_running_loop().time() + 6
        while asyncio.get_running_loop().time() < give_up:
            found = await redis.xread({redis_keys.inbox("node_0"): after}, block=200)
            for entry, fields in found[0][1] if found else ():
                after, message = entry.decode(), wire.decode(fields)
                if isinstance(message, wire.Ping):
                    answered += 1
                    positions = answered if advancing else 1
                    pong = wire.Pong(job.request_id, message.epoch, "node_0", positions)
                    await messaging.publish_event(redis, pong, sender="node_0")
        assert answered > 2
        assert (len(await opened_requests(redis)) == 1) == advancing


async def test_a_successor_of_a_cancelled_generation_closes_its_route(
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
        await wait_for_completion(resources, job)
    assert (await reload(resources, job)).finish_reason == "cancelled"
    assert await balances(resources, job) == (job.hold_far, 0)
