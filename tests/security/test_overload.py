"""Strangers submit many times more than the nodes can serve, all at once, so that every job is
accepted and waits, and whoever comes after them waits longest."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from market.jobs.admission import decision, throughput
from market.jobs.submission import early_refusal
from market.jobs.submission.submissions import MAX_AT_ONCE, MAX_BALANCES
from market.jobs.submission.under_way import UnderWay
from tests.conftest import MODEL_ID
from tests.support.gateway.api import (
    ASYNC,
    GENERATE,
    LAYERS,
    OTHER_WALLET,
    WALLET,
    Gateway,
    Job,
    eventually,
    node,
    problem,
    request_body,
)

JOBS_AT_ONCE = 4
"""What the nodes compute at once."""

WALLETS = [f"0x{number:040x}" for number in range(1, 21)]


@pytest.fixture
async def small(empty_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """A gateway in front of one route for few jobs; it admits a new one if its start is expected
    within ten seconds and a half. Each wallet has money, and what is measured stays as it is."""
    monkeypatch.setattr(throughput, "HALF_LIFE", 1e9)
    monkeypatch.setattr(early_refusal, "STRICTER", 1.0)
    settings = empty_gateway.services.settings.generation
    settings.jobs_per_route, settings.max_start_wait = JOBS_AT_ONCE, 10.5
    await empty_gateway.announce(node(0, start_layer=0, end_layer=LAYERS))
    for wallet in (WALLET, OTHER_WALLET, *WALLETS):
        await empty_gateway.deposit(wallet=wallet)
    return empty_gateway


async def submit(gateway: Gateway, wallet: str = WALLET, **changes: object) -> httpx.Response:
    return await gateway.client.post(
        GENERATE, json=request_body(**changes), headers=ASYNC | gateway.login(wallet)
    )


async def measured(gateway: Gateway, jobs_a_second: float, **changes: object) -> None:
    """The nodes have computed so many jobs a second, each as large as those of these tests."""
    positions = await positions_of_one(gateway, **changes)
    count = round(jobs_a_second * positions * throughput.SLOT_SECONDS)
    await throughput.count(gateway.redis, MODEL_ID, count)


async def positions_of_one(gateway: Gateway, **changes: object) -> int:
    tokenizer = gateway.services.catalog.get(MODEL_ID).tokenizer
    body = request_body(**changes)
    max_tokens = body["max_tokens"]
    assert isinstance(max_tokens, int)
    return len(tokenizer.encode(str(body["prompt"])).ids) + max_tokens


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The wallets of the submissions about which was decided under the model's lock."""
    wallets = []
    admit = decision.admit

    async def count(*arguments: Any) -> None:
        wallets.append(arguments[2][0].user_wallet)
        await admit(*arguments)

    monkeypatch.setattr(decision, "admit", count)
    return wallets


@pytest.fixture
def reads_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway uses nothing that it read of a model a moment ago."""
    monkeypatch.setattr(early_refusal, "FRESH_SECONDS", -1.0)
    monkeypatch.setattr(early_refusal, "STALE_SECONDS", -1.0)


async def test_beyond_what_starts_at_once_nothing_is_accepted_while_the_speed_is_unknown(
    small: Gateway,
) -> None:
    answers = await asyncio.gather(*(submit(small, wallet) for wallet in WALLETS))
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(accepted) == JOBS_AT_ONCE
    for answer in answers:
        if answer not in accepted:
            problem(answer, 503, "overloaded")
            assert int(answer.headers["Retry-After"]) > 0


async def test_kv_cache_bounds_what_starts_at_once(small: Gateway) -> None:
    positions = await positions_of_one(small)
    await small.announce(node(0, start_layer=0, end_layer=LAYERS, kv_positions=2 * positions))
    answers = await asyncio.gather(*(submit(small, wallet) for wallet in WALLETS))
    assert sum(answer.status_code == 202 for answer in answers) == 2


async def test_those_who_would_start_too_late_are_refused_although_all_come_at_once(
    small: Gateway,
) -> None:
    """At one job a second, ten wait their ten seconds, beside those that start at once."""
    await measured(small, jobs_a_second=1)
    answers = await asyncio.gather(*(submit(small, wallet) for wallet in WALLETS))
    assert sum(answer.status_code == 202 for answer in answers) == JOBS_AT_ONCE + 10
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert 6 <= int(refused.headers["Retry-After"]) <= 8, "until half of those ten have started"


async def test_whoever_would_wait_behind_too_many_submissions_is_refused_at_once(
    small: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many of a wallet as may wait, and one more, while none gets its turn."""
    monkeypatch.setattr(small.services.submissions, "under_way", UnderWay(of_wallet=2, in_all=3))
    async with AsyncExitStack() as turns:
        for _ in range(MAX_BALANCES):
            await turns.enter_async_context(small.services.submissions.balances)
        waiting = [
            asyncio.create_task(submit(small, wallet)) for wallet in (WALLET, WALLET, OTHER_WALLET)
        ]

        async def all_wait() -> bool:
            return not small.services.submissions.under_way.has_room(WALLETS[0])

        await eventually(all_wait)
        for wallet in (WALLET, WALLETS[0]):
            refused = await submit(small, wallet)
            problem(refused, 503, "overloaded")
            assert int(refused.headers["Retry-After"]) > 0
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {202}
    assert small.services.submissions.under_way.has_room(WALLET)


async def test_a_refusal_holds_nothing(small: Gateway, decisions: list[str]) -> None:
    for wallet in WALLETS[:JOBS_AT_ONCE]:
        assert (await submit(small, wallet)).status_code == 202
    before = await small.books()
    decisions.clear()
    for _ in range(2):
        problem(await submit(small), 503, "overloaded")
    assert decisions == [WALLET], "the second was refused early"
    assert await small.books() == before


async def test_after_a_burst_the_model_admits_again_as_soon_as_jobs_end(small: Gateway) -> None:
    """Nothing has to be given back: what counts are the jobs that have not ended."""
    answers = [await submit(small, wallet) for wallet in WALLETS[:JOBS_AT_ONCE]]
    problem(await submit(small), 503, "overloaded")
    for answer in answers:
        await Job(small, answer.json()["request_id"]).fail()

    async def is_admitted() -> bool:
        return (await submit(small)).status_code == 202

    await eventually(is_admitted)


async def test_while_nobody_is_admitted_few_are_decided_about_under_the_lock(
    small: Gateway, decisions: list[str]
) -> None:
    for wallet in WALLETS[:JOBS_AT_ONCE]:
        assert (await submit(small, wallet)).status_code == 202
    problem(await submit(small), 503, "overloaded")
    decisions.clear()
    for answer in await asyncio.gather(*(submit(small, wallet) for wallet in WALLETS)):
        problem(answer, 503, "overloaded")
        assert int(answer.headers["Retry-After"]) > 0
    assert not decisions


async def test_no_more_are_taken_in_than_have_room(small: Gateway, decisions: list[str]) -> None:
    """What one reading of the jobs does not contain counts too: the submissions under way."""
    await measured(small, jobs_a_second=1, max_tokens=200)
    answers = await asyncio.gather(*(submit(small, wallet, max_tokens=200) for wallet in WALLETS))
    accepted = sum(answer.status_code == 202 for answer in answers)
    assert accepted == JOBS_AT_ONCE + 10
    assert len(decisions) <= accepted + 2, "what a prompt is long is known when it is tokenized"


@pytest.mark.usefixtures("reads_anew")
async def test_as_many_are_taken_in_as_have_ended(small: Gateway) -> None:
    answers = [await submit(small, wallet) for wallet in WALLETS[:JOBS_AT_ONCE]]
    problem(await submit(small), 503, "overloaded")
    for answer in answers[:3]:
        await Job(small, answer.json()["request_id"]).fail()
    statuses = [(await submit(small, wallet)).status_code for wallet in WALLETS[:JOBS_AT_ONCE]]
    assert statuses == [202, 202, 202, 503]


@pytest.mark.usefixtures("reads_anew")
async def test_many_who_cannot_pay_take_no_room_of_one_who_can(
    small: Gateway,
) -> None:
    """Their submissions are under way, and it is not known yet that they have no money."""
    poor = [f"0x{number:040x}" for number in range(1000, 1020)]
    async with AsyncExitStack() as turns:
        for _ in range(MAX_BALANCES):
            await turns.enter_async_context(small.services.submissions.balances)
        flood = [asyncio.create_task(submit(small, wallet)) for wallet in poor]

        async def all_wait() -> bool:
            return len(small.services.submissions.under_way) == len(poor)

        await eventually(all_wait)
        paying = asyncio.create_task(submit(small))
        await asyncio.sleep(0.1)
        assert not paying.done()
    assert (await paying).status_code == 202
    assert {answer.status_code for answer in await asyncio.gather(*flood)} == {402}


async def test_what_no_node_could_ever_serve_is_told_as_such_under_load_too(small: Gateway) -> None:
    positions = await positions_of_one(small)
    await small.announce(node(0, start_layer=0, end_layer=LAYERS, kv_positions=4 * positions))
    for wallet in WALLETS[:JOBS_AT_ONCE]:
        assert (await submit(small, wallet)).status_code == 202
    problem(await submit(small), 503, "overloaded")
    refused = await submit(small, OTHER_WALLET, max_tokens=5 * positions)
    assert refused.json()["code"] != "overloaded", refused.text


async def test_a_wallet_whose_own_jobs_wait_is_refused_at_once_and_no_other(
    small: Gateway, decisions: list[str]
) -> None:
    await measured(small, jobs_a_second=1)
    for _ in range(JOBS_AT_ONCE + 10):
        assert (await submit(small)).status_code == 202
    problem(await submit(small), 503, "overloaded")
    decisions.clear()
    answers = await asyncio.gather(
        *(submit(small) for _ in range(5)), *(submit(small, WALLETS[0]) for _ in range(5))
    )
    assert [answer.status_code for answer in answers] == 5 * [503] + 5 * [202]
    assert decisions == 5 * [WALLETS[0]]


@pytest.mark.usefixtures("reads_anew")
async def test_whoever_cannot_pay_takes_no_room_of_others(small: Gateway) -> None:
    answers = [await submit(small, wallet) for wallet in WALLETS[:JOBS_AT_ONCE]]
    problem(await submit(small), 503, "overloaded")
    await Job(small, answers[0].json()["request_id"]).fail()
    for _ in range(5):
        problem(await submit(small, "0x" + "ee" * 20), 402, "insufficient_balance")
    assert (await submit(small)).status_code == 202


async def test_one_wallets_flood_refuses_that_wallet_and_no_other(small: Gateway) -> None:
    """Jobs are served in turns, wallet by wallet, so another wallet's job starts soon."""
    await measured(small, jobs_a_second=1)
    flood = [await submit(small) for _ in range(JOBS_AT_ONCE + 11)]
    assert [answer.status_code for answer in flood] == [202] * (JOBS_AT_ONCE + 10) + [503]
    assert (await submit(small, OTHER_WALLET)).status_code == 202


async def test_a_flood_of_submissions_leaves_connections_for_everybody_else(
    small: Gateway,
) -> None:
    """They wait for each other's locks, and may not do so on every connection to Postgres."""
    engine = small.sessions.kw["bind"]
    assert isinstance(engine, AsyncEngine)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, engine.pool.checkedout())  # type: ignore[attr-defined]
            await asyncio.sleep(0)

    await measured(small, jobs_a_second=100)
    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(*(submit(small, wallet) for wallet in 5 * WALLETS))
    watching.cancel()
    assert {answer.status_code for answer in answers} == {202}
    assert 0 < most <= MAX_AT_ONCE + MAX_BALANCES + 1, "and one reads what there is to do"


@pytest.fixture
async def two_sizes(small: Gateway) -> Gateway:
    """As ``small``, with many routes for short generations, and one for long ones that is full."""
    limit = 4 * await positions_of_one(small)
    for number in range(3):
        node_id = f"short_{number}"
        await small.announce(
            node(0, node_id=node_id, start_layer=0, end_layer=LAYERS, kv_positions=limit)
        )
    for wallet in WALLETS[:JOBS_AT_ONCE]:
        assert (await submit(small, wallet)).status_code == 202
    return small


async def test_a_refused_long_generation_does_not_make_short_ones_be_refused(
    two_sizes: Gateway,
) -> None:
    """Few nodes have room for it, and many for others."""
    for _ in range(2):
        problem(await submit(two_sizes, max_tokens=500), 503, "overloaded")
    assert (await submit(two_sizes, OTHER_WALLET)).status_code == 202
