"""A user has prompts computed for one token or none; a node claims more than it computed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, update

from market import ledger
from market.jobs import messaging
from market.jobs.tables import Job, NodeContribution
from market.ledger.integrity_check import check_integrity
from market.prompt_vault import PromptText
from market.resources import Resources
from mesh import redis_keys, token_stream, wire
from tests.support.factories import fund, session
from tests.support.gateway.api import LAYERS, Gateway
from tests.support.jobs import reload, until, write_tokens
from tests.support.market.leases import expire
from tests.support.market.supervision import add_node, supervised, wait_for_first_epoch
from workers.supervisor import completion
from workers.supervisor.task import supervise

PROMPT = 300
PROMPT_PRICE, CACHED_PRICE = Decimal("0.00001"), Decimal("0.000001")
WHOLE = PROMPT * PROMPT_PRICE
EDGE, LAST = "node_0", "last"


async def submit(resources: Resources) -> Job:
    """A job with a long prompt, as the gateway leaves it."""
    job = session(status="pending", lease_counter=0, prompt_price=PROMPT_PRICE)
    job.epoch, job.lease_expires_at, job.prompt_tokens = 0, None, PROMPT
    job.hold_far = WHOLE + job.max_tokens * job.price_per_token_far
    prompt = PromptText(list(range(PROMPT)), [])
    job.request_cipher = resources.vault.encrypt(job.request_id, prompt.to_bytes())
    async with resources.sessions.begin() as db:
        db.add(job)
        await fund(db, wallet=job.user_wallet, amount=job.hold_far)
        await ledger.hold(db, job=job.request_id, wallet=job.user_wallet, amount=job.hold_far)
    return job


async def answer_pings(redis: Redis, node_id: str, positions: int) -> None:
    """A node that says that it has computed so much."""
    after = "0-0"
    while True:
        found = await redis.xread({redis_keys.inbox(node_id): after}, block=100)
        for entry, fields in found[0][1] if found else ():
            after, message = entry.decode(), wire.decode(fields)
            if isinstance(message, wire.Ping):
                pong = wire.Pong(message.request_id, message.epoch, node_id, positions)
                await messaging.publish_event(redis, pong, sender=pong.node_id)


@asynccontextmanager
async def nodes(redis: Redis, claims: Mapping[str, int]) -> AsyncIterator[None]:
    """Two nodes with three layers each. Those with a claim answer pings with it."""
    await add_node(redis, EDGE, (0, LAYERS // 2), ms=1)
    await add_node(redis, LAST, (LAYERS // 2, LAYERS), ms=1)
    tasks = [asyncio.create_task(answer_pings(redis, *claim)) for claim in claims.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def cancel(resources: Resources, redis: Redis, job: Job) -> None:
    async with resources.sessions.begin() as db:
        await db.execute(update(Job).where(Job.id == job.id).values(cancel_requested=True))
    await messaging.publish_event(redis, wire.Cancel(job.request_id, 1), sender=wire.PLATFORM)


async def wait_for_end(resources: Resources, job: Job) -> Job:
    async def look() -> bool:
        return (await reload(resources, job)).status in ("completed", "failed")

    await until(look)
    return await reload(resources, job)


async def assert_charged(
    resources: Resources, job: Job, cost: Decimal, positions: dict[str, int]
) -> None:
    """The user has paid so much, nodes are paid for so many positions, and all books agree."""
    ended = await wait_for_end(resources, job)
    assert ended.total_cost_far == cost
    async with resources.sessions() as db:
        parts = list(await db.scalars(select(NodeContribution)))
        assert await ledger.balance(db, ledger.available(job.user_wallet)) == job.hold_far - cost
        assert await ledger.balance(db, ledger.held(job.user_wallet)) == 0
    assert {part.node_id: part.prompt_tokens_contributed for part in parts} == positions
    assert sum((part.payment_far for part in parts), ended.fee_far or Decimal(0)) == cost
    assert (await check_integrity(resources.sessions)).findings == []


async def test_a_long_prompt_for_a_single_token_is_charged(gateway: Gateway) -> None:
    job = await gateway.submit(prompt="word " * 400, max_tokens=1)
    await job.write("x")
    await job.complete()
    row = await job.row()
    assert row.prompt_tokens > 400
    assert row.total_cost_far == row.hold_far
    assert row.prompt_cost_far == PROMPT_PRICE * row.prompt_tokens > 10 * row.price_per_token_far


@pytest.mark.parametrize(
    ("claims", "paid"),
    [
        ({EDGE: PROMPT, LAST: PROMPT}, {EDGE: PROMPT, LAST: PROMPT}),
        ({EDGE: PROMPT, LAST: 100}, {EDGE: PROMPT, LAST: 100}),
        ({EDGE: 10**6, LAST: 10**6}, {EDGE: PROMPT, LAST: PROMPT}),
        ({EDGE: 100, LAST: 10**6}, {EDGE: 100, LAST: 100}),
        ({EDGE: PROMPT}, {EDGE: PROMPT}),
        ({LAST: PROMPT}, {}),
    ],
    ids=["all", "a part", "claims beyond it", "more than was sent", "a silent node", "a mute edge"],
)
async def test_who_cancels_before_the_first_token_pays_for_what_was_computed(
    resources: Resources, redis: Redis, claims: dict[str, int], paid: dict[str, int]
) -> None:
    resources.settings.generation.ping = 1.0
    async with nodes(redis, claims):
        job = await submit(resources)
        async with supervised(resources, job):
            await wait_for_first_epoch(resources, redis, job)
            await cancel(resources, redis, job)
            await assert_charged(resources, job, PROMPT_PRICE * sum(paid.values()) / 2, paid)


async def test_nodes_stop_when_they_are_asked_what_they_have(
    resources: Resources, redis: Redis
) -> None:
    """Else a prompt is computed on while its bill is made."""
    async with nodes(redis, {EDGE: 1, LAST: 1}):
        job = await submit(resources)
        async with supervised(resources, job):
            await wait_for_first_epoch(resources, redis, job)
            await cancel(resources, redis, job)
            await wait_for_end(resources, job)
    for node_id in (EDGE, LAST):
        entries = await redis.xrange(redis_keys.inbox(node_id))
        kinds = [type(wire.decode(fields)) for _, fields in entries][1:]
        assert kinds[:2] == [wire.Ping, wire.Close]


async def test_who_fails_before_the_first_token_pays_nothing(
    resources: Resources, redis: Redis
) -> None:
    """Also if nodes say that they have computed all of the prompt."""
    resources.settings.generation.max_failures = 1
    async with nodes(redis, {EDGE: PROMPT, LAST: PROMPT}):
        job = await submit(resources)
        async with supervised(resources, job):
            await wait_for_first_epoch(resources, redis, job)
            for node_id in (EDGE, LAST):
                pong = wire.Pong(job.request_id, 1, node_id, PROMPT)
                await messaging.publish_event(redis, pong, sender=pong.node_id)
            refused = wire.GenerationRefused(job.request_id, 1, EDGE, "not_finite")
            await messaging.publish_event(redis, refused, sender=refused.node_id)
            await assert_charged(resources, job, Decimal(0), {})
    assert (await reload(resources, job)).error_code == "stalled"


@pytest.mark.parametrize("cached", [0, 64, PROMPT, 10**6])
async def test_a_cached_prefix_is_cheaper_and_never_more_than_the_prompt(
    resources: Resources, redis: Redis, cached: int
) -> None:
    async with nodes(redis, {}):
        job = await submit(resources)
        async with supervised(resources, job):
            await wait_for_first_epoch(resources, redis, job)
            if cached:
                reused = wire.PrefixReused(job.request_id, 1, cached)
                await messaging.publish_event(redis, reused, sender=EDGE)
            await write_tokens(redis, job, 1, 2)
            await messaging.publish_event(
                redis, wire.Ended(job.request_id, 1, "stop", 2), sender=EDGE
            )
            counted = min(cached, PROMPT)
            prompt = PROMPT_PRICE * (PROMPT - counted) + CACHED_PRICE * counted
            cost = prompt + 2 * job.price_per_token_far
            await assert_charged(resources, job, cost, {EDGE: PROMPT, LAST: PROMPT})
    assert (await reload(resources, job)).cached_prompt_tokens == counted


async def test_computing_a_prompt_again_costs_its_user_nothing(
    resources: Resources, redis: Redis
) -> None:
    """A node is replaced, and the second route has none of the first one's cached prefix."""
    async with nodes(redis, {}):
        await add_node(redis, "spare", (LAYERS // 2, LAYERS), ms=50)
        job = await submit(resources)
        async with supervised(resources, job):
            await wait_for_first_epoch(resources, redis, job)
            await messaging.publish_event(
                redis, wire.PrefixReused(job.request_id, 1, 64), sender=EDGE
            )
            await write_tokens(redis, job, 1, 5)
            refused = wire.GenerationRefused(job.request_id, 1, LAST, "not_finite")
            await messaging.publish_event(redis, refused, sender=refused.node_id)

            async def replaced() -> bool:
                return (await reload(resources, job)).epoch == 2

            await until(replaced)
            await write_on(redis, job, 5, 7)
            await messaging.publish_event(
                redis, wire.Ended(job.request_id, 2, "stop", 7), sender=EDGE
            )
            cost = PROMPT_PRICE * (PROMPT - 64) + CACHED_PRICE * 64 + 7 * job.price_per_token_far
            await assert_charged(resources, job, cost, {EDGE: PROMPT, LAST: 0, "spare": PROMPT})


async def write_on(redis: Redis, job: Job, begin: int, end: int) -> None:
    """Tokens of the second epoch, once it may write."""
    keys = (redis_keys.live_record(job.request_id), redis_keys.tokens(job.request_id))
    for index in range(begin, end):

        async def taken(index: int = index) -> bool:
            written: int = await redis.eval(token_stream.APPEND_TOKEN, 2, *keys, 2, index, 7, "x")
            return written == 1

        await until(taken)


class Killed(Exception):
    """The worker dies here."""


async def test_a_worker_killed_while_it_ends_a_cancelled_prompt_charges_once(
    resources: Resources, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor asks nodes that have forgotten the generation, and has their first answers."""

    async def die(*_: object, **__: object) -> None:
        raise Killed

    async with nodes(redis, {EDGE: PROMPT, LAST: PROMPT}):
        job = await submit(resources)
        with monkeypatch.context() as dying:
            dying.setattr(completion, "end", die)
            supervising = asyncio.create_task(supervise({"resources": resources}, job.request_id))
            await wait_for_first_epoch(resources, redis, job)
            await cancel(resources, redis, job)
            with pytest.raises(Killed):
                await supervising
    await expire(resources, job)
    async with nodes(redis, {EDGE: 0, LAST: 0}):
        for _ in range(2):
            await supervise({"resources": resources}, job.request_id)
    await assert_charged(resources, job, WHOLE, {EDGE: PROMPT, LAST: PROMPT})
